"""The samplers of a search: Optuna's, by name.

Adding one is one entry, or one `Sampler` in a file BDTUNE_PLUGINS/samplers/NAME.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.registry import Named, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.samplers import BaseSampler


@dataclass(frozen=True, kw_only=True)
class Sampler(Named):
    """What proposes the settings of a search's trials."""

    build: Callable[[int, int], BaseSampler]
    """(seed of the search, number of the trial) -> its sampler; equal ones propose the same, also when the
    search is resumed."""
    objectives: int | None = None
    """The most objectives it can improve; None: any number."""


def _anew(cls: str) -> Callable[[int, int], BaseSampler]:
    """Return how to build a sampler of Optuna's with another seed for each trial."""

    def build(seed: int, number: int) -> BaseSampler:
        import optuna

        sampler: BaseSampler = getattr(optuna.samplers, cls)(seed=(seed + 1_000_003 * number) % 2**32)
        return sampler

    return build


def _qmc(seed: int, _number: int) -> BaseSampler:
    """Return one sequence for the whole study: it counts the trials itself."""
    import optuna

    return optuna.samplers.QMCSampler(seed=seed, scramble=True)


SAMPLERS = Table(
    "samplers",
    [
        Sampler(name="tpe", about="tree-structured Parzen estimator", build=_anew("TPESampler")),
        Sampler(name="random", about="independent draws", build=_anew("RandomSampler")),
        Sampler(name="qmc", about="quasi-random points that fill the space evenly", build=_qmc),
        Sampler(name="nsga2", about="genetic search for several objectives", build=_anew("NSGAIISampler")),
        Sampler(name="gp", about="Gaussian process", build=_anew("GPSampler")),
    ],
)

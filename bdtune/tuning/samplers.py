"""The samplers of a search: Optuna's, by name.

Adding one is one entry, or one `Sampler` in a file BDTUNE_PLUGINS/samplers/NAME.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.plugins.table import Named, Table

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.samplers import BaseSampler


@dataclass(frozen=True)
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
        Sampler("tpe", "tree-structured Parzen estimator", _anew("TPESampler")),
        Sampler("random", "independent draws", _anew("RandomSampler")),
        Sampler("qmc", "quasi-random points that fill the space evenly", _qmc),
        Sampler("nsga2", "genetic search for several objectives", _anew("NSGAIISampler")),
        Sampler("gp", "Gaussian process", _anew("GPSampler")),
    ],
)

"""Where a sweep's trials come from: a finite list, or a search, which is an Optuna study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from bdtune.config.expand import points
from bdtune.config.trial import trial_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec
    from bdtune.config.trial import TrialSpec


class TrialSource(Protocol):
    """Gives trials, and learns what became of them."""

    adaptive: bool
    """Whether the trials depend on the results of earlier ones."""

    def ask(self) -> tuple[int, TrialSpec] | None:
        """Return a ticket and a trial, or None when there are no more."""

    def tell(self, ticket: int, values: Sequence[float] | None) -> None:
        """Say what a ticket's trial reached on each objective; None when it failed."""


class ListSource:
    """Trials that are known beforehand, in their order."""

    adaptive = False

    def __init__(self, trials: Iterable[TrialSpec]) -> None:
        self._trials = enumerate(trials)

    def ask(self) -> tuple[int, TrialSpec] | None:
        return next(self._trials, None)

    def tell(self, ticket: int, values: Sequence[float] | None) -> None:
        """Known trials learn nothing."""


class GridSource(ListSource):
    """The points of a finite sweep.

    Under a scheduler they come in the order of their ids, which are hashes: what stops trials early compares
    each with those before it, and in a grid's own order, worse settings first, it would stop none.
    """

    def __init__(self, spec: SweepSpec) -> None:
        super().__init__(sorted(points(spec), key=trial_id) if spec.scheduler.judges else points(spec))


def make_source(spec: SweepSpec, folder: Path) -> TrialSource:
    """Return what proposes a sweep's trials; an Optuna study lives in `folder`."""
    if spec.search is None:
        return GridSource(spec)
    from bdtune.cluster.study import StudySource  # loads optuna, which a finite sweep need not wait for

    return StudySource(spec, folder)

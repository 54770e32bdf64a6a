"""How long the rest of a sweep takes: what its plan still lacks, at recorded costs and the pace of now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.engine.plan import Guess, no_guess

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from bdtune.engine.plan import Plan
    from bdtune.report.live import Running
    from bdtune.trials.ledger import Entry, Ledger

SLOWEST, FASTEST = 10.0, 0.1
"""Bounds of the pace: one stage that is far off says little about the others."""


@dataclass(frozen=True)
class _Stage:
    """A running stage: the seconds that it was to take, that it has had, and that it still takes."""

    predicted: float
    elapsed: float
    left: float

    @property
    def pace(self) -> float:
        """How many times longer than predicted it takes."""
        return (self.elapsed + self.left) / self.predicted


class Estimate:
    """Looks at a ledger's plan anew whenever it is asked, so that what became shared or stored counts.

    `slots`: trials at a time, at least. `unasked`: the seconds that trials take which a search has not asked
    for yet, by the number of those that it has.
    """

    def __init__(
        self,
        ledger: Ledger,
        slots: int = 1,
        *,
        guess: Guess = no_guess,
        unasked: Callable[[int], float] = lambda asked: 0.0,
    ) -> None:
        self.ledger, self.slots = ledger, slots
        self._guess, self._unasked = guess, unasked
        self._pace = 1.0

    def __call__(self, ended: Container[str], running: Mapping[str, Running], now: float) -> float | None:
        """Return the seconds that the trials take which have not ended; None where some stage is unknown.

        `running` are what some of them are doing at the time `now`.
        """
        self.slots = max(self.slots, len(running))
        plan = self.ledger.plan(self._guess, without=ended)
        if plan.unpredicted:
            return None
        stages = [self._stage(plan, self.ledger.entries.get(trial), at, now) for trial, at in running.items()]
        later = self._unasked(sum(not entry.is_baseline for entry in list(self.ledger.entries.values())))
        waiting = plan.seconds_shared + later - sum(stage.predicted for stage in stages)
        rest = self._pace * waiting + sum(stage.left for stage in stages)
        longest = self._pace * plan.seconds_longest
        longest -= max((self._pace * stage.predicted - stage.left for stage in stages), default=0.0)
        return max(rest / self.slots, longest, 0.0)

    def _stage(self, plan: Plan, entry: Entry | None, at: Running, now: float) -> _Stage:
        """Return what a running stage takes: by its own pace once it has one, else as predicted.

        The machine may be busier than when the costs were recorded: a stage's own pace is that of the others.
        """
        nodes = [] if entry is None else [n for n in entry.graph.stages.values() if n.name == at.stage]
        predicted = (plan.predicted.get(nodes[0].recipe) if nodes else None) or 0.0
        elapsed = now - at.since
        if not at.epochs or not at.epoch:
            return _Stage(predicted, elapsed, max(predicted - elapsed, 0.05 * predicted))
        stage = _Stage(predicted, elapsed, elapsed / at.epoch * (at.epochs - at.epoch))
        if predicted > 0:
            self._pace = (self._pace + min(max(stage.pace, FASTEST), SLOWEST)) / 2
        return stage

"""How long the rest of a sweep takes: what its plan still lacks, at the costs that were recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.engine.plan import Costs, Guess, no_guess

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from bdtune.report.live import Running
    from bdtune.trials.ledger import Entry, Ledger


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

    def __call__(self, ended: Container[str], running: Mapping[str, Running], now: float) -> float | None:
        """Return the seconds that the trials take which have not ended; None where some stage is unknown.

        `running` are what some of them are doing at the time `now`.
        """
        self.slots = max(self.slots, len(running))
        plan = self.ledger.plan(self._guess, without=ended)
        if plan.unpredicted:
            return None
        costs = Costs(self.ledger.resolver.store, self._guess)
        done = [self._done(costs, self.ledger.entries.get(trial), at, now) for trial, at in running.items()]
        later = self._unasked(sum(not entry.is_baseline for entry in list(self.ledger.entries.values())))
        rest = plan.seconds_shared + later - sum(done)
        return max(rest / self.slots, plan.seconds_longest - max(done, default=0.0), 0.0)

    def _done(self, costs: Costs, entry: Entry | None, at: Running, now: float) -> float:
        """Return how many of a running stage's predicted seconds need not be waited for any more."""
        nodes = [] if entry is None else [n for n in entry.graph.stages.values() if n.name == at.stage]
        predicted = (costs.seconds(nodes[0]) if nodes else None) or 0.0
        elapsed = now - at.since
        left = max(predicted - elapsed, 0.05 * predicted)
        if at.epochs and at.epoch:  # its own pace says more than what others took
            left = elapsed / at.epoch * (at.epochs - at.epoch)
        return predicted - left

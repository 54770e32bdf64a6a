"""What fits a budget: the trials, in their order, whose stages cost no more than so many hours together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bdtune.engine.plan import Plan
    from bdtune.trials.ledger import Entry, Ledger


@dataclass
class Spending:
    """Adds up the seconds of stages that the store lacks; one that was paid for costs nothing again.

    `plan` is one of all trials of the ledger: it has the seconds. A stage of which nothing is known costs
    nothing.
    """

    ledger: Ledger
    plan: Plan
    limit_s: float = float("inf")
    spent_s: float = 0.0
    paid: set[str] = field(default_factory=set)
    """Recipes of the stages that were paid for."""

    def buy(self, entries: Iterable[Entry]) -> list[Entry]:
        """Return the trials that fit, each with its baseline paid for; the others are left out."""
        return [entry for entry in entries if self._fits(entry)]

    def _fits(self, entry: Entry) -> bool:
        baseline = self.ledger.baseline(entry)
        goals = [*entry.graph.goals, *(baseline.graph.goals if baseline else ())]
        steps = {step.recipe: step for node in goals for step in node.walk()}
        new = {
            recipe: self.plan.predicted.get(recipe) or 0.0
            for recipe, step in steps.items()
            if recipe not in self.paid and self.ledger.resolver.manifest(step) is None
        }
        if self.spent_s + sum(new.values()) > self.limit_s:
            return False
        self.spent_s += sum(new.values())
        self.paid |= new.keys()
        return True

"""What each stage of a sweep cost, and what sharing saved."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from bdtune.report.table import Column, Row, Table, duration, size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.trials.results import StageUse, SweepResult


SMALL = 0.002
"""Share of all seconds under which a stage is counted among others."""


@dataclass(frozen=True)
class StageCost:
    """The uses of all stages in one role."""

    role: str
    computed: int
    shared: int
    spent: float
    """Seconds."""
    saved: float
    written: int
    """Bytes of what was computed."""
    read: int
    """Bytes of other trials' results that computing it read."""
    fetched: int
    """Bytes that came from a bucket, and `served`: those that a node had copies of."""
    served: int


def stage_costs(result: SweepResult) -> list[StageCost]:
    """Return the cost of each role that took time, the dearest first; small ones together."""
    found: dict[str, list[StageUse]] = {}
    for trial in result.trials:
        for role, use in trial.stages.items():
            found.setdefault(role, []).append(use)
    costs = [_of_role(role, uses) for role, uses in found.items()]
    costs.sort(key=lambda cost: -(cost.spent + cost.saved))
    least = SMALL * sum(cost.spent + cost.saved for cost in costs)
    large = [cost for cost in costs if cost.spent + cost.saved > least]
    small = [cost for cost in costs if cost not in large and cost.spent + cost.saved > 0]
    if not small:
        return large
    names = [field.name for field in fields(StageCost) if field.name != "role"]
    together = {name: sum(getattr(cost, name) for cost in small) for name in names}
    return [*large, StageCost(f"{len(small)} others", **together)]


def _of_role(role: str, uses: Sequence[StageUse]) -> StageCost:
    own = [use for use in uses if use.computed]
    return StageCost(
        role,
        len(own),
        len(uses) - len(own),
        sum(use.seconds for use in own),
        sum(use.seconds for use in uses if not use.computed),
        sum(use.bytes for use in own),
        sum(use.read for use in own),
        sum(use.fetched for use in own),
        sum(use.served for use in own),
    )


def cost_table(costs: Sequence[StageCost]) -> Table:
    """Return the costs as a table; what a bucket's nodes fetched and had, where there is one."""
    bytes_of = ["written", "read"]
    if any(cost.fetched or cost.served for cost in costs):
        bytes_of += ["fetched", "served"]
    numbers = [Column(name) for name in ("computed", "shared", "spent", "saved", *bytes_of)]
    rows = [
        Row(
            (
                c.role,
                *(str(c.computed), str(c.shared), duration(c.spent), duration(c.saved)),
                *(size(getattr(c, name)) for name in bytes_of),
            )
        )
        for c in costs
    ]
    return Table("", (Column("stage", numeric=False), *numbers), tuple(rows))


def cost_sentence(costs: Sequence[StageCost]) -> str:
    """Return what was spent, and what would have been without sharing."""
    spent, saved = sum(cost.spent for cost in costs), sum(cost.saved for cost in costs)
    if spent == 0:
        return f"Nothing was computed for this sweep: all {duration(saved)} of it were in the store."
    factor = (spent + saved) / spent
    return (
        f"{duration(spent)} of stages were computed; sharing saved {duration(saved)}: without it the sweep "
        f"takes {factor:.1f} times as long."
    )

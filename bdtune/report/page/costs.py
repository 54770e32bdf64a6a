"""What each stage of a sweep cost, and what sharing saved, in a sweep and between those of a campaign."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from bdtune.report.table import Column, Row, Table, duration, size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


@dataclass(frozen=True)
class SweepCost:
    """A sweep of a campaign: its distinct stages, and those that no sweep before it has."""

    name: str
    stages: int
    added: int
    alone_s: float
    added_s: float


def sweep_costs(results: Mapping[str, SweepResult]) -> list[SweepCost]:
    """Return what each sweep takes alone, and what it adds to those before it."""
    known: set[str] = set()
    found = []
    for name, result in results.items():
        seconds = _distinct([result])
        new = seconds.keys() - known
        known |= new
        added_s = sum(seconds[key] for key in new)
        found.append(SweepCost(name, len(seconds), len(new), sum(seconds.values()), added_s))
    return found


def _distinct(results: Sequence[SweepResult]) -> dict[str, float]:
    """Return the seconds of each stage by its key, whoever paid for it."""
    uses = (use for result in results for trial in result.trials for use in trial.stages.values())
    return {use.key: use.seconds for use in uses}


def sweep_cost_table(costs: Sequence[SweepCost]) -> Table:
    """Return what sweeps take as a table."""
    heads = ("stages", "of them new", "time alone", "time added")
    rows = [
        Row((c.name, str(c.stages), str(c.added), duration(c.alone_s), duration(c.added_s))) for c in costs
    ]
    return Table("", (Column("sweep", numeric=False), *(Column(head) for head in heads)), tuple(rows))


def sharing_sentence(costs: Sequence[SweepCost], whole: SweepResult) -> str:
    """Return what a campaign's stages take, as sweeps on their own, and if nothing were shared.

    `whole` has the trials of all sweeps, each once.
    """
    together = sum(cost.added_s for cost in costs)
    alone = sum(cost.alone_s for cost in costs)
    unshared = sum(use.seconds for trial in whole.trials for use in trial.stages.values())
    if not together:
        return "Nothing was computed yet."
    times_alone, times_unshared = f"{alone / together:.2f} times", f"{unshared / together:.2f} times"
    return (
        f"The stages of the campaign take {duration(together)}. As sweeps on their own they take "
        f"{duration(alone)} ({times_alone} as long), and {duration(unshared)} if no two trials shared "
        f"anything ({times_unshared})."
    )

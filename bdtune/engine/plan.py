"""The plan of a sweep: which stages its trials need, which exist, what sharing saves. Computes nothing."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.knobs import short_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bdtune.engine.resolve import Resolver
    from bdtune.engine.stage import Node
    from bdtune.engine.store import Store


class Costs:
    """Predicts the seconds of a stage from those recorded in the store."""

    def __init__(self, store: Store) -> None:
        same: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        alike: dict[str, list[float]] = defaultdict(list)
        file = store.root / "costs.jsonl"
        for line in file.read_text().splitlines() if file.exists() else []:
            row = json.loads(line)
            same[row["stage"], row.get("config_hash")].append(row["seconds"])
            if "epochs" in row:  # stores of early versions do not say
                alike[row["stage"]].append(row["seconds"] / (row["epochs"] or 1))
        self._same = {config_hash: fmean(seconds) for config_hash, seconds in same.items()}
        self._per_epoch = {stage: fmean(seconds) for stage, seconds in alike.items()}

    def seconds(self, node: Node) -> float | None:
        """Return the mean over past runs of the stage with these knobs; None if the stage is new.

        Without such a run: the stage's mean seconds per epoch times its epochs.
        """
        if (known := self._same.get((node.stage.full_name(), node.stage.config_hash))) is not None:
            return known
        per_epoch = self._per_epoch.get(node.stage.full_name())
        return None if per_epoch is None else per_epoch * (node.stage.length() or 1)


@dataclass
class StageCount:
    """How often a stage occurs in a plan."""

    unique: int = 0
    cached: int = 0
    reused: int = 0
    """Missing ones that a longer training, missing too, publishes on its way."""
    without_sharing: int = 0
    exact: bool = True
    """False while stages before it have no result: different recipes may turn out to be one."""


@dataclass
class Plan:
    """What `bdtune plan` prints."""

    trials: int
    references: int
    stages: dict[str, StageCount] = field(default_factory=dict)
    seconds_shared: float = 0.0
    seconds_unshared: float = 0.0
    unpredicted: tuple[str, ...] = ()  # stages that were never run, so not in the seconds

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune plan --json` prints."""
        return {
            "trials": self.trials,
            "references": self.baselines,
            "stages": {name: vars(count) for name, count in self.stages.items()},
            "seconds": {"shared": round(self.seconds_shared, 2), "unshared": round(self.seconds_unshared, 2)},
            "unpredicted": list(self.unpredicted),
        }


def make_plan(trials: Iterable[Sequence[Node]], references: int, resolver: Resolver) -> Plan:
    """Count the stages that `trials` (the nodes each must compute, references among them) need."""
    costs = Costs(resolver.store)
    plan = Plan(trials=-references, references=references)
    unique: dict[str, Node] = {}
    absent: list[Node] = []
    seconds: dict[str, float | None] = {}
    for nodes in trials:
        plan.trials += 1
        steps = {step.recipe: step for node in nodes for step in node.walk()}
        for recipe, step in steps.items():
            key = resolver.key(step)
            count = plan.stages.setdefault(step.stage.full_name(), StageCount())
            count.without_sharing += 1
            count.exact = count.exact and key is not None
            if recipe not in seconds:
                seconds[recipe] = costs.seconds(step)
            plan.seconds_unshared += seconds[recipe] or 0.0
            identity = key or recipe
            if identity in unique:
                continue
            unique[identity] = step
            count.unique += 1
            if key is not None and resolver.store.has(key):
                count.cached += 1
            else:
                absent.append(step)
    _count_absent(plan, absent, seconds)
    _shorten(plan)
    return plan


def _count_absent(plan: Plan, absent: list[Node], seconds: dict[str, float | None]) -> None:
    """Add what must be computed, without what longer trainings publish on their way."""
    prefix_reuse = PrefixReuse()
    prefix_reuse.want(absent)
    unknown: set[str] = set()
    for step in absent:
        if prefix_reuse.is_reused(step):
            plan.stages[step.stage.full_name()].reused += 1
        elif (predicted := seconds[step.recipe]) is None:
            unknown.add(step.stage.full_name())
        else:
            plan.seconds_shared += predicted
    plan.unpredicted = tuple(sorted(unknown))


def _shorten(plan: Plan) -> None:
    """Leave out of the stages' names what is not needed to tell them apart."""
    short = short_names(plan.stages)
    plan.stages = {short[name]: count for name, count in plan.stages.items()}
    plan.unpredicted = tuple(sorted(short[name] for name in plan.unpredicted))

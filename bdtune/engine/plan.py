"""The plan of a sweep: which stages its trials need, which exist, what sharing saves. Computes nothing."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.knobs import short_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bdtune.engine.resolve import Resolver
    from bdtune.engine.stage import Node
    from bdtune.engine.store import Store


RECENT = 5
"""Runs of a stage by which the next one is judged: a machine's load changes."""

Guess = Callable[["Node"], "float | None"]
"""The seconds of a stage that was never run; None where nothing can be said."""


def no_guess(_: Node) -> None:
    """Guess nothing."""


class Costs:
    """Predicts the seconds of a stage from those recorded in the store, else by a guess."""

    def __init__(self, store: Store, guess: Guess = no_guess) -> None:
        self._guess = guess
        seconds: dict[tuple[str | None, ...], deque[float]] = defaultdict(partial(deque, maxlen=RECENT))
        for row in store.costs():
            stage, knobs, scale = row["stage"], row.get("config_hash"), row.get("scale")
            for key in ((stage, knobs, scale), (stage, knobs)):
                seconds[key].append(row["seconds"])
            if "epochs" in row:  # stores of early versions do not say
                for key in ((stage, None, scale), (stage, None)):
                    seconds[key].append(row["seconds"] / (row["epochs"] or 1))
        self._known = {key: fmean(values) for key, values in seconds.items()}

    def seconds(self, node: Node) -> float | None:
        """Return the mean over the last runs with these knobs, data and network; None if nothing is known.

        Without such a run: its mean seconds per epoch on this data and network times its epochs, then the
        guess, then the same of other data and networks.
        """
        stage, knobs = node.stage.full_name(), node.stage.config_hash
        epochs = node.stage.length() or 1
        known = self._at((stage, knobs, node.scale)), self._at((stage, None, node.scale), epochs)
        if (found := next((each for each in known if each is not None), None)) is not None:
            return found
        if (guessed := self._guess(node)) is not None:
            return guessed
        elsewhere = self._at((stage, knobs))
        return self._at((stage, None), epochs) if elsewhere is None else elsewhere

    def _at(self, key: tuple[str | None, ...], times: int = 1) -> float | None:
        known = self._known.get(key)
        return None if known is None else known * times


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
    baselines: int
    stages: dict[str, StageCount] = field(default_factory=dict)
    seconds_shared: float = 0.0
    seconds_unshared: float = 0.0
    seconds_longest: float = 0.0
    """Of the trial that takes longest, whose stages must come one after the other."""
    predicted: dict[str, float | None] = field(default_factory=dict)
    """Seconds of each stage by recipe; None where nothing is known of it."""
    unpredicted: tuple[str, ...] = ()  # stages that were never run, so not in the seconds

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune plan --json` prints."""
        return {
            "trials": self.trials,
            "baselines": self.baselines,
            "stages": {name: vars(count) for name, count in self.stages.items()},
            "seconds": {"shared": round(self.seconds_shared, 2), "unshared": round(self.seconds_unshared, 2)},
            "unpredicted": list(self.unpredicted),
        }


def make_plan(
    trials: Iterable[Sequence[Node]], baselines: int, resolver: Resolver, guess: Guess = no_guess
) -> Plan:
    """Count the stages that `trials` (the nodes each must compute, baselines among them) need.

    `guess` gives the seconds of stages that were never run.
    """
    costs = Costs(resolver.store, guess)
    sharing = _Sharing()
    plan = Plan(trials=-baselines, baselines=baselines)
    unique: dict[str, Node] = {}
    absent: list[Node] = []
    seconds = plan.predicted
    for nodes in trials:
        plan.trials += 1
        longest = 0.0
        steps = {step.recipe: step for node in nodes for step in node.walk()}
        for recipe, step in steps.items():
            key = resolver.key(step)
            count = plan.stages.setdefault(step.stage.full_name(), StageCount())
            count.without_sharing += 1
            count.exact = count.exact and key is not None
            if recipe not in seconds:
                seconds[recipe] = costs.seconds(step)
            plan.seconds_unshared += seconds[recipe] or 0.0
            sharing.note(step, key)
            identity = key or recipe
            if key is None or not resolver.store.has(key):
                longest += seconds[recipe] or 0.0
            if identity in unique:
                continue
            unique[identity] = step
            count.unique += 1
            if key is not None and resolver.store.has(key):
                count.cached += 1
            else:
                absent.append(step)
        plan.seconds_longest = max(plan.seconds_longest, longest)
    _count_absent(plan, absent, sharing)
    _shorten(plan)
    return plan


class _Sharing:
    """How many results the recipes of a stage come to, as far as their keys are known already."""

    def __init__(self) -> None:
        self._keys: dict[str, set[str]] = defaultdict(set)
        self._recipes: dict[str, set[str]] = defaultdict(set)
        self._unknown: set[str] = set()

    def note(self, step: Node, key: str | None) -> None:
        """Take in a recipe, with its key if that is known."""
        if key is None:
            self._unknown.add(step.recipe)
        else:
            self._keys[step.stage.full_name()].add(key)
            self._recipes[step.stage.full_name()].add(step.recipe)

    def share(self, step: Node) -> float:
        """Return the part of a recipe's cost that is to be expected: less than 1 where others were equal."""
        stage = step.stage.full_name()
        if step.recipe not in self._unknown or stage not in self._keys:
            return 1.0
        return len(self._keys[stage]) / len(self._recipes[stage])


def _count_absent(plan: Plan, absent: list[Node], sharing: _Sharing) -> None:
    """Add what must be computed, without what longer trainings save as by-products."""
    prefix_reuse = PrefixReuse()
    prefix_reuse.want(absent)
    unknown: set[str] = set()
    for step in absent:
        if prefix_reuse.is_reused(step):
            plan.stages[step.stage.full_name()].reused += 1
        elif (predicted := plan.predicted[step.recipe]) is None:
            unknown.add(step.stage.full_name())
        else:
            plan.seconds_shared += predicted * sharing.share(step)
    plan.unpredicted = tuple(sorted(unknown))


def _shorten(plan: Plan) -> None:
    """Leave out of the stages' names what is not needed to tell them apart."""
    short = short_names(plan.stages)
    plan.stages = {short[name]: count for name, count in plan.stages.items()}
    plan.unpredicted = tuple(sorted(short[name] for name in plan.unpredicted))

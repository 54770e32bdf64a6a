"""The plan of a sweep: which stages its trials need, which exist, what sharing saves. Computes nothing."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bdtune.engine.node import steps_of
from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.engine.traffic import Traffic
from bdtune.engine.uncollected import uncollected
from bdtune.knobs import short_names

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    from bdtune.engine.manifest import Manifest
    from bdtune.engine.node import Node
    from bdtune.engine.resolve import Resolver
    from bdtune.engine.store import Store


RECENT = 5
"""Runs of a stage by which the next one is judged: a machine's load changes."""

Guess = Callable[["Node"], "float | None"]
"""The seconds of a stage that was never run; None where nothing can be said."""


def no_guess(_: Node) -> None:
    """Guess nothing."""


class Costs:
    """Predicts the seconds of a stage from those recorded in the store, else by a guess; and its bytes."""

    def __init__(self, store: Store, guess: Guess = no_guess) -> None:
        self._guess = guess
        seconds: dict[tuple[str | None, ...], deque[float]] = defaultdict(partial(deque, maxlen=RECENT))
        self._bytes: dict[tuple[str | None, ...], int] = {}
        for row in store.costs():
            stage, knobs, scale = row["stage"], row.get("config_hash"), row.get("scale")
            for key in ((stage, knobs, scale), (stage, knobs)):
                seconds[key].append(row["seconds"])
            if "epochs" in row:  # stores of early versions do not say
                for key in ((stage, None, scale), (stage, None)):
                    seconds[key].append(row["seconds"] / (row["epochs"] or 1))
            if "bytes" in row:
                self._bytes[stage, knobs, scale] = self._bytes[stage, scale] = row["bytes"]
        self._known = {key: fmean(values) for key, values in seconds.items()}
        self._ran = {stage for stage, *_ in seconds}
        self._scales: dict[tuple[tuple[str, int], ...], tuple[Node, str]] = {}

    def seconds(self, node: Node) -> float | None:
        """Return the mean over the last runs with these knobs, data and network; None if nothing is known.

        Without such a run: its mean seconds per epoch on this data and network times its epochs, then the
        guess, then the same of other data and networks.
        """
        stage = node.stage.full_name()
        if stage not in self._ran:
            return self._guess(node)
        knobs, scale, epochs = node.stage.config_hash, self._scale(node), node.stage.length() or 1
        known = self._at((stage, knobs, scale)), self._at((stage, None, scale), epochs)
        if (found := next((each for each in known if each is not None), None)) is not None:
            return found
        if (guessed := self._guess(node)) is not None:
            return guessed
        elsewhere = self._at((stage, knobs))
        return self._at((stage, None), epochs) if elsewhere is None else elsewhere

    def bytes(self, node: Node) -> int | None:
        """Return the size of the stage's last result with these knobs, data and network.

        Without such a one: with other knobs; None if it was never run on this data and network.
        """
        if not self._bytes:  # a first plan asks for every node
            return None
        stage, scale = node.stage.full_name(), self._scale(node)
        return self._bytes.get((stage, node.stage.config_hash, scale), self._bytes.get((stage, scale)))

    def _scale(self, node: Node) -> str:
        """Return the node's scale, worked out once for all nodes that read the very same sources."""
        read = tuple([(name, id(source)) for name, source in node.sources.items()])
        if read not in self._scales:
            self._scales[read] = node, node.scale  # the node keeps its sources, and so their identity
        return self._scales[read][1]

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
    written: int | None = 0
    """Bytes of the results to compute; None where the size of one is not known."""
    read: int | None = 0
    """Bytes that computing them reads of results which another trial computes, or computed: see `Traffic`."""


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
    weights: int | None = 0
    """Bytes of the results of its `leaves`, stored ones too; None where the size of one is not known."""

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune plan --json` prints."""
        return {
            "trials": self.trials,
            "baselines": self.baselines,
            "stages": {name: vars(count) for name, count in self.stages.items()},
            "seconds": {"shared": round(self.seconds_shared, 2), "unshared": round(self.seconds_unshared, 2)},
            "unpredicted": list(self.unpredicted),
            "weights": self.weights,
        }


@uncollected()
def make_plan(
    trials: Iterable[Sequence[Node]],
    baselines: int,
    resolver: Resolver,
    guess: Guess = no_guess,
    *,
    leaves: Container[str] = (),
    weigh: Callable[[Node], int | None] = no_guess,
) -> Plan:
    """Count the stages that `trials` (the nodes each must compute, baselines among them) need.

    `guess` gives the seconds of stages that were never run; `leaves` are recipes of trained classifiers that
    are only judged, whose bytes `weigh` gives where the store knows nothing of their size.
    """
    plan = Plan(trials=-baselines, baselines=baselines)
    counter = _Counter(plan, resolver, Costs(resolver.store, guess), leaves, weigh)
    for nodes in trials:
        plan.trials += 1
        counter.add(nodes)
    counter.add_dropped()
    _count_absent(plan, counter.absent, counter.sharing)
    _shorten(plan)
    return plan


@dataclass(slots=True)
class _Step:
    """What a plan knows of a recipe: it is looked up once, however many trials need it."""

    count: StageCount
    seconds: float
    """0 where nothing is known of it."""
    missing_s: float
    """These seconds, 0 where its result is in the store."""
    settled: bool
    """Whether it is known how it enters the keys of later nodes."""
    key: str | None
    there: Manifest | None
    """Its result, if that is in the store."""


class _Counter:
    """Enters trials into a plan, one after the other."""

    def __init__(
        self,
        plan: Plan,
        resolver: Resolver,
        costs: Costs,
        leaves: Container[str],
        weigh: Callable[[Node], int | None],
    ) -> None:
        self.plan, self.resolver, self.costs = plan, resolver, costs
        self.leaves, self.weigh = leaves, weigh
        self.traffic = Traffic(plan.stages, costs)
        self.sharing = _Sharing()
        self.absent: list[Node] = []
        """Nodes that must be computed, each key once."""
        self._steps: dict[str, _Step] = {}
        self._unique: set[str] = set()

    def add(self, goals: Iterable[Node]) -> None:
        """Count a trial that computes these nodes."""
        longest = 0.0
        self.traffic.next_trial()
        for recipe, node in steps_of(goals).items():
            step = self._steps.get(recipe)
            if step is None:
                step = self._steps[recipe] = self._entered(node)
            else:
                self.traffic.enter(node, step.key, step.there)
            step.count.without_sharing += 1
            self.plan.seconds_unshared += step.seconds
            longest += step.missing_s
        self.plan.seconds_longest = max(self.plan.seconds_longest, longest)

    def add_dropped(self) -> None:
        """Count as missing what is in the store without its arrays and is read by what is missing."""
        found: set[str | None] = set()
        for node in self.absent:  # which grows: what brings it back may read what was dropped, too
            for parent in node.parents:
                step = self._steps[parent.recipe]
                if step.there is not None and step.there.dropped and step.key not in found:
                    found.add(step.key)
                    step.count.cached -= 1
                    self.absent.append(parent)

    def _entered(self, node: Node) -> _Step:
        """Count a recipe that no trial before had."""
        recipe, stage = node.recipe, node.stage.full_name()
        count = self.plan.stages.get(stage) or self.plan.stages.setdefault(stage, StageCount())
        predicted = self.plan.predicted[recipe] = self.costs.seconds(node)
        seconds = predicted or 0.0
        key = self._key(node)
        self.sharing.note(stage, recipe, key)
        there = None if key is None else self.resolver.store.manifest(key)
        stored = there is not None
        self.traffic.enter(node, key, there)
        count.exact = count.exact and key is not None
        if (key or recipe) not in self._unique:
            self._unique.add(key or recipe)
            count.unique += 1
            count.cached += stored
            if recipe in self.leaves:
                self._count_weights(node, there)
            if not stored:
                self.absent.append(node)
                self.traffic.compute(node)
        settled = key is not None and (stored or node.stage.kind == "train")
        return _Step(count, seconds, 0.0 if stored else seconds, settled, key, there)

    def _count_weights(self, node: Node, there: Manifest | None) -> None:
        size = self.costs.bytes(node) if there is None else there.size
        size = self.weigh(node) if size is None else size
        known = self.plan.weights
        self.plan.weights = None if known is None or size is None else known + size

    def _key(self, node: Node) -> str | None:
        """Return a node's key; None, which the resolver is slow to find, behind what is not settled."""
        for parent in node.parents:
            if not self._steps[parent.recipe].settled:
                return None
        return self.resolver.key(node)


class _Sharing:
    """How many results the recipes of a stage come to, as far as their keys are known already."""

    def __init__(self) -> None:
        self._keys: dict[str, set[str]] = defaultdict(set)
        self._known: dict[str, int] = defaultdict(int)
        self._unknown: set[str] = set()

    def note(self, stage: str, recipe: str, key: str | None) -> None:
        """Take in a recipe of a stage for the first time, with its key if that is known."""
        if key is None:
            self._unknown.add(recipe)
        else:
            self._keys[stage].add(key)
            self._known[stage] += 1

    def share(self, stage: str, recipe: str) -> float:
        """Return the part of a recipe's cost that is to be expected: less than 1 where others were equal."""
        if recipe not in self._unknown or stage not in self._keys:
            return 1.0
        return len(self._keys[stage]) / self._known[stage]


def _count_absent(plan: Plan, absent: list[Node], sharing: _Sharing) -> None:
    """Add what must be computed, without what longer trainings save as by-products."""
    reused = _reused(absent)
    unknown: set[str] = set()
    for step in absent:
        stage = step.stage.full_name()
        if step.recipe in reused:
            plan.stages[stage].reused += 1
        elif (predicted := plan.predicted[step.recipe]) is None:
            unknown.add(stage)
        else:
            plan.seconds_shared += predicted * sharing.share(stage, step.recipe)
    plan.unpredicted = tuple(sorted(unknown))


def _reused(nodes: Sequence[Node]) -> set[str]:
    """Return the recipes that longer ones of the nodes save; only stages of several lengths are compared."""
    lengths: dict[str, set[int]] = defaultdict(set)
    for node in nodes:
        lengths[node.stage.full_name()].add(node.stage.length())
    several = [node for node in nodes if len(lengths[node.stage.full_name()]) > 1]
    prefix_reuse = PrefixReuse()
    prefix_reuse.want(several)
    return {node.recipe for node in several if prefix_reuse.is_reused(node)}


def _shorten(plan: Plan) -> None:
    """Leave out of the stages' names what is not needed to tell them apart."""
    short = short_names(plan.stages)
    plan.stages = {short[name]: count for name, count in plan.stages.items()}
    plan.unpredicted = tuple(sorted(short[name] for name in plan.unpredicted))

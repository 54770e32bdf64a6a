"""From a trial to its graph of stages: the defense's chain, what judges it, and its baseline."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from bdtune.engine.stage import Node, PluginSource
from bdtune.plugins import defense as defenses
from bdtune.plugins import registry
from bdtune.plugins.handles import BACKDOORED, CLEAN, CLEAN_LABELS, FIT, LABELS
from bdtune.plugins.input_detector import DETECTION, THRESHOLD, InputDetector
from bdtune.poisoning.sources import (
    CleanLabels,
    CleanSet,
    CleanTest,
    CoverTest,
    FitLabels,
    FitSet,
    SelectCleanSet,
    SelectSet,
    TriggeredTest,
    TriggerShown,
    TruthSource,
)
from bdtune.training.choices import settled
from bdtune.trials.chain import Bindings, bound
from bdtune.trials.detecting import detection, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bdtune.config.trial import TrialSpec
    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Source
    from bdtune.knobs import Knobs
    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.handles import Handle
    from bdtune.poisoning.reserve import Reserve

UNDEFENDED = "none"
"""The defense that is none: what every other one is compared with."""


@dataclass(frozen=True)
class TrialGraph:
    """The nodes of one trial; trials that share the beginning of a chain share recipes up to there."""

    evaluate: Node
    """Info: acc, asr, ... of the final classifier."""
    diagnose: Node | None
    """Info: what the defense got right, under its name; None when it has nothing to be judged by."""
    chain: Mapping[str, Node] = field(default_factory=dict)
    """The defense's nodes by its own names; "classifier" is what it ends in."""
    baseline: TrialSpec | None = None
    """The baseline; None when the trial is undefended itself."""
    data_digest: str = ""
    """Names the poisoned training set: its files, the attack and the seeds."""
    truth: TruthSource | None = None
    """Which samples are poisoned, for what is reported afterwards."""
    judging: tuple[str, ...] = ("classifier",)
    """Names of the chain's nodes whose epochs a scheduler may judge, as the defense gives them."""

    @property
    def goals(self) -> list[Node]:
        """The nodes whose results the trial reports."""
        return [self.evaluate] if self.diagnose is None else [self.evaluate, self.diagnose]

    @cached_property
    def judged(self) -> dict[str, int]:
        """Recipes of the stages whose epochs a scheduler judges, with the epochs of those before each."""
        found: dict[str, int] = {}
        epochs = 0
        for node in (self.chain[name] for name in self.judging if name in self.chain):
            if node.stage.classifier and node.recipe not in found:
                found[node.recipe] = epochs
                epochs += node.stage.length()
        return found

    @property
    def epochs(self) -> int:
        """Epochs of all stages that a scheduler judges; 1 where the classifier is handed over as it is."""
        return max(1, sum(self.stages[recipe].stage.length() for recipe in self.judged))

    @property
    def budget(self) -> int | None:
        """Epochs on all or nearly all samples of the classifier's own weights; None: not trained here.

        The weights that a training starts from count with it; another network's training does not.
        """
        epochs, node = 0, self.chain["classifier"]
        while True:
            epochs += 0 if node.stage.few_samples else node.stage.length()
            before = node.inputs.get("init", node.inputs.get("classifier"))
            if not isinstance(before, Node):
                return epochs or None
            node = before

    @cached_property
    def roles(self) -> dict[str, str]:
        """The unique role of each node by recipe: its name in the chain, else where its result is read.

        "retrain", "evaluate"; "attack.trigger" of what an attack trains, "attack.trigger.model" before it.
        """
        named = {node.recipe: role for role, node in reversed(list(self.chain.items()))}
        named |= {node.recipe: node.name for node in self.goals}
        todo = deque([*self.chain.values(), *self.goals])
        while todo:
            node = todo.popleft()
            for role, parent in _read_by(node, named[node.recipe]):
                if parent.recipe not in named:
                    named[parent.recipe] = role
                    todo.append(parent)
        return named

    @cached_property
    def stages(self) -> dict[str, Node]:
        """All nodes of the trial by recipe, parents first."""
        return {node.recipe: node for goal in self.goals for node in goal.walk()}


def _read_by(node: Node, role: str) -> Iterator[tuple[str, Node]]:
    """Yield the parents of a node in a role, each with the role that it has as such."""
    for name, value in node.inputs.items():
        if isinstance(value, Node):
            yield f"{role}.{name}", value
        else:
            yield from ((f"attack.{key}", parent) for key, parent in value.upstream.items())


class _Sources(NamedTuple):
    """A trial's data, by the role it plays."""

    fit: FitSet
    labels: FitLabels
    clean_set: CleanSet | None
    select: SelectSet | None
    select_clean: SelectCleanSet | None
    clean: CleanTest
    triggered: TriggeredTest | None
    cover: CoverTest | None
    truth: TruthSource
    examples: TriggerShown | None


@lru_cache(maxsize=256)
def _sources(
    *,
    dataset: Dataset,
    root: Path | None,
    attack: Attack | None,
    seed: int,
    numerics: Numerics,
    reserve: Reserve,
    holdout: float,
    stream: bool,
) -> _Sources:
    """Make the sources once for all trials that share them: each reads its fingerprint once."""
    attacked = {
        "dataset": dataset,
        "root": root,
        "attack": attack,
        "seed": seed,
        "numerics": numerics,
        "reserve": reserve,
    }
    fit = FitSet(**attacked, holdout=holdout, stream=stream)
    return _Sources(
        fit=fit,
        labels=fit.read_as(FitLabels),
        clean_set=fit.read_as(CleanSet) if reserve.clean else None,
        select=fit.read_as(SelectSet) if holdout > 0 else None,
        select_clean=fit.read_as(SelectCleanSet) if reserve.select_clean else None,
        clean=_clean_test(dataset, root),
        triggered=None if attack is None else TriggeredTest(**attacked),
        cover=CoverTest(**attacked) if attack is not None and attack.covers_test else None,
        truth=fit.read_as(TruthSource),
        examples=None if attack is None else TriggerShown(**attacked),
    )


@lru_cache(maxsize=64)
def _clean_test(dataset: Dataset, root: Path | None) -> CleanTest:
    return CleanTest(dataset=dataset, root=root)


def trial_graph(spec: TrialSpec) -> TrialGraph:
    """Return the graph of a trial; reads the data set's files for their fingerprint, but no image."""
    spec = _settled(spec)
    data = _sources(
        dataset=spec.dataset,
        root=spec.data_root,
        attack=spec.attack,
        seed=spec.seed_of_data,
        numerics=spec.numerics,
        reserve=spec.reserve,
        holdout=spec.holdout,
        stream=spec.pipeline == "stream",
    )
    model = PluginSource(plugin=spec.model)
    chain = _chain(spec, data, model)
    inputs: dict[str, Node | Source] = {
        "classifier": chain["classifier"],
        "model": model,
        "clean": data.clean,
    }
    optional: dict[str, Source | None] = {"triggered": data.triggered, "cover": data.cover}
    optional |= {"select": data.select, "select_clean": data.select_clean}
    inputs |= {name: source for name, source in optional.items() if source is not None}
    evaluate = Node(spec.evaluation, inputs, spec.seed, spec.numerics)
    diagnose = defenses.diagnosis(spec.defense, chain, data.truth, data.examples)
    return TrialGraph(
        evaluate, diagnose, chain, _baseline(spec), data.fit.digest, data.truth, spec.defense.judged
    )


def _chain(spec: TrialSpec, data: _Sources, model: PluginSource) -> dict[str, Node]:
    """Return the defense's chain on the trial's data; it is built of handles, which lead to no truth."""
    backdoored = None if spec.attack is None else spec.attack.backdoored_model(data.fit, model)
    given = defenses.DefenseInputs(
        fit=FIT,
        labels=LABELS,
        model=model,
        numerics=spec.numerics,
        backdoored=None if backdoored is None else BACKDOORED,
        clean=None if data.clean_set is None else CLEAN,
        clean_labels=None if data.clean_set is None else CLEAN_LABELS,
    )
    sources: dict[Handle, Source] = {FIT: data.fit, LABELS: data.labels}
    if data.clean_set is not None:
        sources |= {CLEAN: data.clean_set, CLEAN_LABELS: data.clean_set.read_as(CleanLabels)}
    bindings = Bindings(sources, backdoored, spec.seed)
    chain = spec.defense.build(given)
    found = bound(spec.defense.plugin_name(), chain, bindings)
    if isinstance(spec.defense, InputDetector):
        tests = shown(data.clean, data.triggered)
        found[DETECTION] = detection(
            spec.defense, given, chain, bindings, threshold=found.get(THRESHOLD), tests=tests
        )
    return found


def _settled(spec: TrialSpec) -> TrialSpec:
    """Return the trial with what its attack and defense leave to the data set written out."""
    mirrors = spec.dataset.mirrors
    attack = None if spec.attack is None else settled(spec.attack, mirrors=mirrors)
    found: dict[str, Knobs | None] = {"attack": attack, "defense": settled(spec.defense, mirrors=mirrors)}
    if spec.baseline is not None:
        found["baseline"] = settled(spec.baseline, mirrors=mirrors)
    return spec.model_copy(update=found)


def undefended(spec: TrialSpec) -> TrialSpec | None:
    """Return the trial's baseline: same data, attack, seeds and training; None if it is its own."""
    return _baseline(_settled(spec))


def _baseline(spec: TrialSpec) -> TrialSpec | None:
    if spec.defense.plugin_name() == UNDEFENDED:
        return None
    none = registry.load("defenses", UNDEFENDED)
    training = spec.baseline or spec.defense.baseline_training()
    return spec.model_copy(update={"defense": none.model_validate({"train": training}), "baseline": None})

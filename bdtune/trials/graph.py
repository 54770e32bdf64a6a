"""From a trial to its graph of stages: the defense's chain, what judges it, and its baseline."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from bdtune.config.trial import TRIAL_KEYS, build, sections_of
from bdtune.engine.input_source import PluginSource
from bdtune.engine.node import Node
from bdtune.engine.shared import Alike, Shared
from bdtune.plugins import defense as defenses
from bdtune.plugins import registry
from bdtune.plugins.handles import BACKDOORED, CLEAN, CLEAN_LABELS, FIT, LABELS
from bdtune.plugins.input_detector import DETECTION, THRESHOLD, InputDetector
from bdtune.poisoning.clean_sources import CleanTest
from bdtune.poisoning.reserve import Reserve
from bdtune.poisoning.reserved_sources import CleanLabels, CleanSet, SelectCleanSet, SelectTriggeredSet
from bdtune.poisoning.train_sources import FitLabels, FitSet, SelectSet, TruthSource
from bdtune.poisoning.triggered_sources import CoverTest, TriggeredTest, TriggerShown
from bdtune.training.choices import settled
from bdtune.trials.chain import Binder, Bindings, Chains
from bdtune.trials.detecting import detection, scoring, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from bdtune.config.trial import TrialSpec
    from bdtune.engine.input_source import Source
    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.defense import Defense
    from bdtune.plugins.handles import Handle
    from bdtune.training.supervised import Supervised

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
    select_clean_triggered: SelectTriggeredSet | None
    clean: CleanTest
    triggered: TriggeredTest | None
    cover: CoverTest | None
    truth: TruthSource
    examples: TriggerShown | None

    @property
    def judging(self) -> dict[str, Source]:
        """What a classifier is evaluated on, besides itself."""
        found: dict[str, Source | None] = {"clean": self.clean, "triggered": self.triggered}
        found |= {"cover": self.cover, "select": self.select, "select_clean": self.select_clean}
        found |= {"select_clean_triggered": self.select_clean_triggered}
        return {name: source for name, source in found.items() if source is not None}


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
        select_clean_triggered=fit.read_as(SelectTriggeredSet) if reserve.select_clean else None,
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
    return Graphs().of(spec)


def undefended(spec: TrialSpec) -> TrialSpec | None:
    """Return the trial's baseline: same data, attack, seeds and training; None if it is its own."""
    return Graphs().baseline(spec)


_DECIDING = (
    "dataset",
    "root",
    "attack",
    "seed",
    "numerics",
    "clean",
    "holdout_clean",
    "holdout",
    "stream",
)
"""What decides a trial's data."""


class _Template(NamedTuple):
    """What a defense makes of its knobs and of handles, before there are data."""

    chain: Mapping[str, Node]
    scores: Node | None
    """What scores inputs, of a defense that judges them."""
    diagnose: defenses.Diagnose


class Graphs:
    """Makes the graphs of many trials: what they have in common (settings, data, nodes) is made once."""

    def __init__(self) -> None:
        self._alike = Alike()
        self._settled = Shared(_settled)
        self._data = Shared(_data)
        self._models = Shared(lambda model: PluginSource(plugin=model))
        self._backdoored = Shared(lambda attack, fit, model: attack.backdoored_model(fit, model))
        self._binders = Shared(_binder)
        self._chains = Shared(_chains)
        self._templates = Shared(_template)
        self._undefended = Shared(self._baseline_defense)
        self._baselines = Shared(lambda *sections: build(dict(zip(TRIAL_KEYS, sections, strict=True))))

    def of(self, spec: TrialSpec) -> TrialGraph:
        """Return the graph of a trial; reads the data set's files for their fingerprint, but no image."""
        attack, defense = self._plugins(spec)
        data: _Sources = self._data(
            spec.dataset,
            spec.data_root,
            attack,
            spec.seed_of_data,
            spec.numerics,
            spec.clean,
            spec.holdout_clean,
            spec.holdout,
            spec.pipeline == "stream",
        )
        model = self._models(spec.model)
        backdoored = None if attack is None else self._backdoored(attack, data.fit, model)
        binder = self._binders(data, backdoored, spec.seed)
        chains = self._chains(data.clean_set is not None, backdoored is not None)
        template = self._templates(defense, model, spec.numerics, chains)
        chain = binder.bound(template.chain)
        if template.scores is not None:
            tests = shown(data.clean, data.triggered)
            chain[DETECTION] = detection(
                template.scores, chain[THRESHOLD], binder.bindings, tests, spec.numerics
            )
        read: dict[str, Node | Source] = {"classifier": chain["classifier"], "model": model, **data.judging}
        return TrialGraph(
            Node(spec.evaluation, read, spec.seed, spec.numerics),
            defenses.diagnosis(template.diagnose, chain, data.truth, data.examples),
            chain,
            self._baseline(spec, attack, defense),
            data.fit.digest,
            data.truth,
            defense.judged,
        )

    def baseline(self, spec: TrialSpec) -> TrialSpec | None:
        """Return the trial's baseline: same data, attack, seeds and training; None if it is its own."""
        return self._baseline(spec, *self._plugins(spec))

    def _plugins(self, spec: TrialSpec) -> tuple[Attack | None, Defense]:
        """Return attack and defense with what they leave to the data set written out."""
        mirrors = spec.dataset.mirrors
        attack = None if spec.attack is None else self._settled(spec.attack, mirrors)
        return attack, self._settled(spec.defense, mirrors)

    def _baseline(self, spec: TrialSpec, attack: Attack | None, defense: Defense) -> TrialSpec | None:
        if defense.plugin_name() == UNDEFENDED:
            return None
        own = None if spec.baseline is None else self._settled(spec.baseline, spec.dataset.mirrors)
        changed = {"attack": attack, "defense": self._undefended(own, defense), "baseline": None}
        return self._baselines(*{**sections_of(spec), **changed}.values())

    def _baseline_defense(self, asked: Supervised | None, defense: Defense) -> Defense:
        """Return no defense, with the training that one is compared with; the same object for equal ones.

        That is what the trial asked for, else what the defense names.
        """
        none = registry.load("defenses", UNDEFENDED)
        return self._alike.one(none.model_validate({"train": asked or defense.baseline_training()}))


def _settled(plugin: Attack | Defense | Supervised, mirrors: bool) -> Any:
    return settled(plugin, mirrors=mirrors)


def _data(*settings: Any) -> _Sources:
    """Return the data of trials with these settings, which are in the order of `_DECIDING`."""
    given = dict(zip(_DECIDING, settings, strict=True))
    reserve = Reserve(clean=given.pop("clean"), select_clean=given.pop("holdout_clean"))
    return _sources(**given, reserve=reserve)


def _binder(data: _Sources, backdoored: Node | None, seed: int) -> Binder:
    sources: dict[Handle, Source] = {FIT: data.fit, LABELS: data.labels}
    if data.clean_set is not None:
        sources |= {CLEAN: data.clean_set, CLEAN_LABELS: data.clean_set.read_as(CleanLabels)}
    return Binder(Bindings(sources, backdoored, seed))


def _chains(clean: bool, handed_over: bool) -> Chains:
    return Chains({FIT, LABELS, *((CLEAN, CLEAN_LABELS) if clean else ())}, handed_over=handed_over)


def _template(defense: Defense, model: PluginSource, numerics: Numerics, chains: Chains) -> _Template:
    """Return a defense's chain; it is built of handles, which lead to no truth."""
    clean = CLEAN in chains.given
    given = defenses.DefenseInputs(
        fit=FIT,
        labels=LABELS,
        model=model,
        numerics=numerics,
        backdoored=BACKDOORED if chains.handed_over else None,
        clean=CLEAN if clean else None,
        clean_labels=CLEAN_LABELS if clean else None,
    )
    built = defense.build(given)
    chain = chains.checked(defense.plugin_name(), built)
    scores = scoring(defense, given, built, chains) if isinstance(defense, InputDetector) else None
    return _Template(chain, scores, defenses.Diagnose(defense=defense))

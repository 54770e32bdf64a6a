"""What every defense promises, checked on tiny images with every training cut to one epoch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.engine.input_source import PluginSource, Source
from bdtune.engine.key import digest_of
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact, Context, Stage
from bdtune.plugins import registry
from bdtune.plugins.attack import Attack
from bdtune.plugins.data import GoalSet, ImageSet, LabelSet, Truth
from bdtune.plugins.dataset import Dataset
from bdtune.plugins.defense import Defense, DefenseInputs, Diagnose, diagnosis
from bdtune.plugins.handles import CLEAN, CLEAN_LABELS, FIT, LABELS
from bdtune.plugins.input_detector import DETECTION, Detection, InputDetector
from bdtune.plugins.poison_plan import PoisonPlan, Rows
from bdtune.poisoning.clean_sources import UNKNOWN
from bdtune.poisoning.train_sources import FitSet
from bdtune.reading.resident import InProcess
from bdtune.testing.described import check_each
from bdtune.testing.reach import reachable
from bdtune.testing.small import NUMERICS, held, shown
from bdtune.training.supervised import Supervised
from bdtune.trials.chain import Bindings, bound
from bdtune.trials.graph import trial_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bdtune.knobs import Knobs

CLASSES, EACH, SEED = 3, 16, 5
Pipeline = Literal["resident", "stream"]
SHORT = {"batch_size": 16, "iterations": 2, "overlays": 4, "computed": 4}
"""What settings of these names become, wherever they stand."""


def short(cls: type[Knobs], epochs: int = 1) -> dict[str, Any]:
    """Return knobs of a defense with every training cut to so many epochs, and counts to tiny sets."""
    from bdtune.knobs import Knobs

    knobs: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Knobs):
            knobs[name] = short(field.annotation, epochs)
        elif name == "epochs":
            knobs[name] = epochs
        elif name in SHORT:
            knobs[name] = SHORT[name]
    return knobs


def small_defense(name: str) -> Defense:
    """Return a defense by name, with short trainings."""
    cls = registry.load("defenses", name)
    defense: Defense = cls(**short(cls))
    return defense


def observed_set() -> ImageSet:
    """Return 48 images of three classes, with a row of white that gives the class away."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), EACH))
    images = rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    images[np.arange(len(labels)), labels] = 255
    return ImageSet(images, labels, CLASSES, (0.5,) * 3, (0.25,) * 3)


def clean_set() -> ImageSet:
    """Return other 24 images of the same classes, that are known to be clean."""
    data, rows = observed_set(), np.arange(24)
    assert isinstance(data.images, np.ndarray)
    return replace(data, images=np.ascontiguousarray(data.images[rows, ::-1]), labels=data.labels[rows])


def given() -> DefenseInputs:
    """Return what a defense gets: the sets in memory and a narrow network."""
    data = observed_set()
    labels = LabelSet(data.labels, data.num_classes)
    model = bdtune.model("resnet18", width=2)
    fit, names, network = held("fit", data), held("labels", labels), held("model", model)
    known = clean_set()
    clean, clean_names = held("clean", known), held("clean_labels", LabelSet(known.labels, CLASSES))
    given = DefenseInputs(fit, names, network, seed=SEED, numerics=NUMERICS)
    return replace(given, clean=clean, clean_labels=clean_names)


def truth(seed: int) -> Truth:
    """Return a truth that fits the observed set; another seed, another truth."""
    rng = np.random.default_rng(seed)
    observed = observed_set().labels
    role = rng.integers(0, 2, len(observed)).astype(np.uint8)
    return Truth(rng.permutation(observed), observed, role, seed % CLASSES)


def detected(defense: Defense, source: DefenseInputs, chain: dict[str, Node]) -> dict[str, Node]:
    """Return a chain with what a trial adds where the defense judges inputs: tests are the clean images."""
    if not isinstance(defense, InputDetector):
        return chain
    data = clean_set()
    shown = held("inputs", replace(data, labels=np.full(len(data), UNKNOWN)))
    goals = GoalSet(data.labels, data.num_classes, np.zeros(len(data), np.int64))
    scores = defense.scores(source, chain, shown)
    named = {"threshold": chain["threshold"], "clean": scores, "triggered": scores}
    labels = {f"{kind}_labels": held(f"{kind}_labels", goals) for kind in ("clean", "triggered")}
    return {**chain, DETECTION: source.node(Detection(), **named, **labels)}


class Run:
    """Computes nodes once each, in this process, and keeps what came in and out."""

    def __init__(self) -> None:
        self.done: dict[Node, tuple[dict[str, Any], Artefact]] = {}
        self.names: dict[Node, str] = {}

    def __call__(self, node: Node) -> Artefact:
        if node not in self.done:
            inputs = {
                name: self(each) if isinstance(each, Node) else each.load(None, {})  # type: ignore[arg-type]
                for name, each in node.inputs.items()
            }
            try:
                found = node.stage.run(Context(node.seed, node.numerics), **inputs)
            except Exception as error:
                error.add_note(f"in node '{self.name(node)}'")
                raise
            got = type(found).__name__
            assert isinstance(found, Artefact), f"expected an Artefact of node '{self.name(node)}', got {got}"
            self.done[node] = inputs, found
        return self.done[node][1]

    def name(self, node: Node) -> str:
        """Return how the chain calls a node; of one that it does not name, the stage's name."""
        return self.names.get(node, node.name)

    def all(self, defense: Defense, source: DefenseInputs) -> tuple[dict[str, Node], Node | None]:
        """Compute a defense's chain and what judges it, the latter first, so that it could do its harm."""
        chain = detected(defense, source, defense.build(source))
        self.names |= {node: name for name, node in chain.items()}
        judge = diagnosis(Diagnose(defense=defense), chain, held("truth", truth(0)))
        for node in [*([judge] if judge else []), *chain.values()]:
            self(node)
        return chain, judge


class Unseen(Attack):
    """Poison that shows in no image and no label: who is poisoned can be known from the plan alone."""

    clean_label: ClassVar[bool] = True

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return images


def poisoned_set(pipeline: Pipeline, seed: int) -> ImageSet:
    """Return the observed set as a trial loads it; of another seed, others are poisoned in it."""
    data = observed_set()
    assert isinstance(data.images, np.ndarray)
    source = FitSet(dataset=shown(data.images, data.labels, CLASSES), attack=Unseen(rate=0.1), seed=seed)
    loaded: ImageSet = source.load(InProcess(pipeline=pipeline), {})
    return loaded


class EverySave:
    """A checkpoint slot that keeps all saves, and loads the one that it is set to."""

    def __init__(self) -> None:
        self.saves: list[tuple[dict[str, np.ndarray], dict[str, Any]]] = []
        self.loaded: tuple[dict[str, np.ndarray], dict[str, Any]] | None = None

    def due(self) -> bool:
        return self.loaded is None

    def save(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        copies = {name: np.array(value) for name, value in arrays.items()}
        self.saves.append((copies, json.loads(json.dumps(info))))

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        return self.loaded


SECRET = Truth | PoisonPlan | Attack | Dataset
"""What leads to who is poisoned; no stage of a defense may reach it."""


@cache
def whole_run(cls: type[Defense]) -> tuple[Run, dict[str, Node], Node | None]:
    """Return a defense's chain and judge, computed once for all checks that only look at results."""
    run = Run()
    return run, *run.all(cls(**short(cls)), given())


def check_chain(name: str) -> None:
    """The chain is named, ends in a classifier, and has the undefended training of the defense's budget."""
    defense = small_defense(name)
    chain = defense.build(given())
    has = ", ".join(chain) or "none"
    assert "classifier" in chain, f"expected a node called 'classifier' in the chain, got {has}"
    for key, node in chain.items():
        assert isinstance(node, Node), (
            f"expected '{key}' to be a node, given.node(...), got {type(node).__name__}"
        )
        assert isinstance(node.stage, Stage), f"expected node '{key}' to be of a Stage, got {node.stage!r}"
        made = (node.master_seed, node.numerics) == (SEED, NUMERICS)
        assert made, f"expected node '{key}' to be made by given.node(...), which sets seed and device"
    known = detected(defense, given(), chain).keys()
    unknown = {*defense.evidence, *defense.pictured_nodes(), *defense.judged} - known
    assert not unknown, (
        f"`evidence`, `pictured` or `judged` names what is no node: {', '.join(sorted(unknown))}; "
        f"there are {has}"
    )
    assert defense.judged[-1] == "classifier", (
        f"expected `judged` to end in 'classifier', got {defense.judged}"
    )
    others = [key for key in defense.judged if not chain[key].stage.classifier]
    assert not others, f"expected trainings of a classifier (`classifier = True`) in `judged`, got {others}"
    undefended = defense.baseline_training()
    plain = isinstance(undefended, Supervised) and undefended.name == "supervised" and undefended.classifier
    assert plain, (
        f"expected `baseline_training` to return a plain `Supervised`, got {type(undefended).__name__}"
    )
    assert bdtune.defense("none", train=undefended).build(given())["classifier"].stage == undefended
    named = {node.recipe for node in chain.values()}
    unnamed = [node.name for node in chain["classifier"].walk() if node.recipe not in named]
    assert not unnamed, f"expected a name in the chain for each node; those of stages {unnamed} have none"


def check_epochs(name: str, **knobs: Any) -> None:
    """The undefended model is trained for as many epochs as the defended one."""
    raw = {"dataset": "digits", "attack": "badnets", "defense": {"name": name, **knobs}, "clean": 0.1}
    spec, wrong = parse_trial(raw)
    assert spec is not None, "; ".join(map(str, wrong))
    defended, undefended = trial_graph(spec).budget, spec.defense.baseline_training().epochs
    assert defended == undefended, (
        f"the classifier is trained for {defended} epochs on all or nearly all samples, "
        f"`baseline_training` for {undefended}"
    )


def check_recipes(name: str) -> None:
    """Equal knobs give equal recipes."""
    first, second = (small_defense(name).build(given()) for _ in range(2))
    assert list(first) == list(second), (
        f"built twice, the chain is {', '.join(first)}, then {', '.join(second)}"
    )
    differ = [node for node in first if first[node].recipe != second[node].recipe]
    assert not differ, f"built twice from equal settings, these nodes differ: {', '.join(differ)}"


def check_reads_what_it_is_given(name: str) -> None:
    """The chain reads the poisoned set, its labels, the clean set and networks, and nothing else."""
    have = given()
    assert have.clean is not None
    assert have.clean_labels is not None
    model = PluginSource(plugin=bdtune.model("resnet18", width=2))
    handles = replace(have, fit=FIT, labels=LABELS, clean=CLEAN, clean_labels=CLEAN_LABELS, model=model)
    own = {FIT: have.fit, LABELS: have.labels, CLEAN: have.clean, CLEAN_LABELS: have.clean_labels}
    bindings = Bindings(own, None, SEED)
    chain = bound(name, small_defense(name).build(handles), bindings)
    read = [value for last in chain.values() for node in last.walk() for value in node.inputs.values()]
    sources = {
        id(value) for value in read if isinstance(value, Source) and not isinstance(value, PluginSource)
    }
    nodes = [
        node.name
        for last in chain.values()
        for node in last.walk()
        for value in node.inputs.values()
        if id(value) in sources - {id(source) for source in own.values()}
    ]
    expected = "expected nodes to read given.fit, given.labels and given.clean"
    assert not nodes, f"{expected}; {', '.join(nodes)} read other data"


def check_truth_is_not_read(name: str, pipelines: tuple[Pipeline, ...] = ("resident", "stream")) -> None:
    """No result changes when true labels, poison flags and target change, and no stage can reach them."""
    defense = small_defense(name)
    for pipeline in pipelines:
        digests = []
        for seed in (0, 1):
            run = Run()
            chain, judge = run.all(defense, replace(given(), fit=held("fit", poisoned_set(pipeline, seed))))
            for node, (inputs, _) in run.done.items():
                if node is not judge:
                    found = [each for value in inputs.values() for each in reachable(value)]
                    secret = [type(each).__name__ for each in found if isinstance(each, SECRET)]
                    assert not secret, f"node '{run.name(node)}' can reach the truth: {', '.join(secret)}"
            digests.append({key: digest_of(run(node).arrays, run(node).info) for key, node in chain.items()})
        differ = [key for key in digests[0] if digests[0][key] != digests[1][key]]
        assert not differ, (
            f"the result of {', '.join(differ)} differs between two runs on equal images and labels: "
            "it reads the truth, or draws at random without `ctx.seed`"
        )


def check_diagnosis_and_figure(name: str) -> None:
    """What is diagnosed are finite numbers under the defense's name; a figure has axes."""
    defense = small_defense(name)
    run, chain, judge = whole_run(type(defense))
    assert (judge is None) == (not defense.evidence)
    if judge is None:
        return
    found = run(judge)
    assert found.info, "expected numbers of `diagnose`, as `evidence` names nodes, got none"
    wrong = [key for key, value in found.info.items() if not np.isfinite(value)]
    assert not wrong, f"expected finite numbers of `diagnose`; {', '.join(wrong)} are not"
    assert all(key.startswith(f"{name}/") and np.isfinite(value) for key, value in found.info.items())
    seen = {key: run(chain[key]) for key in defense.pictured_nodes() if key in chain}
    picture = defense.figure(seen, truth(0))
    assert picture is None or picture.axes


def check_verdicts(name: str) -> None:
    """What the defense suspects are positions of training rows, each once."""
    defense = small_defense(name)
    run, chain, _ = whole_run(type(defense))
    found = defense.suspected({key: run(chain[key]) for key in defense.evidence if key in chain})
    if found is None:
        return
    rows = len(observed_set())
    described = f"{found.dtype} {list(found.shape)}"
    right = (found.dtype, found.ndim) == (np.int64, 1)
    assert right, f"expected int64 [n] of `suspected`, got {described}"
    inside = len(found) == len(set(found.tolist()) & set(range(rows)))
    assert inside, f"expected positions from 0 to {rows - 1} of `suspected`, each once"


def check_resumes(name: str) -> None:
    """A training that was killed after any epoch, also the last, goes on from its state to the same bits."""
    cls = registry.load("defenses", name)
    defense: Defense = cls(**short(cls, epochs=2))
    run = Run()
    run.all(defense, given())
    for node, (inputs, whole) in run.done.items():
        if node.stage.kind == "derive":
            continue
        slot = EverySave()
        context = Context(node.seed, node.numerics, slot)
        node.stage.run(context, **inputs)
        for number, saved in enumerate(slot.saves, 1):
            slot.loaded = saved
            resumed = node.stage.run(context, **inputs)
            same = digest_of(resumed.arrays, resumed.info) == digest_of(whole.arrays, whole.info)
            assert same, (
                f"node '{run.name(node)}' gives another result from its state after epoch {number}: "
                "what an epoch changes must be in what is saved, or follow from the epoch's number"
            )


def check_derived_stages(name: str) -> None:
    """Derived stages need neither torch nor images, since the driver runs them, and repeat exactly."""
    run, *_ = whole_run(type(small_defense(name)))
    torch = sys.modules["torch"]
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        for node, (inputs, before) in run.done.items():
            if node.stage.kind != "derive":
                continue
            label = f"derived node '{run.name(node)}'"
            images = [key for key, value in inputs.items() if isinstance(value, ImageSet)]
            assert not images, f"{label} reads images ({', '.join(images)}): give it kind = 'train'"
            try:
                again = node.stage.run(Context(node.seed, node.numerics), **inputs)
            except ImportError as error:
                raise AssertionError(
                    f"{label} imports torch: give it kind = 'train', or use numpy"
                ) from error
            same = digest_of(again.arrays, again.info) == digest_of(before.arrays, before.info)
            assert same, f"{label} gives another result the second time: draw what is random from `ctx.seed`"
    finally:
        sys.modules["torch"] = torch


def check_subsets(name: str) -> None:
    """A subset holds ids and labels only: equal content must give an equal digest, whoever made it."""
    run, *_ = whole_run(type(small_defense(name)))
    for node, (inputs, _) in run.done.items():
        if "subset" in inputs:
            subset = inputs["subset"]
            types = {key: str(value.dtype) for key, value in subset.arrays.items()}
            as_promised = types == {"ids": "int64", "labels": "int64"} and not subset.info
            assert as_promised, (
                f"expected node '{run.name(node.inputs['subset'])}', a subset, to give the arrays ids and "  # type: ignore[arg-type]
                f"labels, int64, and no info, got {types} and info {dict(subset.info)}"
            )


CHECKS: tuple[Callable[[str], None], ...] = (
    check_chain,
    check_epochs,
    check_recipes,
    check_reads_what_it_is_given,
    check_truth_is_not_read,
    check_diagnosis_and_figure,
    check_verdicts,
    check_resumes,
    check_derived_stages,
    check_subsets,
)


def check_defense(name: str) -> None:
    """Check a defense by name; raises `AssertionError` for the first broken promise."""
    check_each("defenses", name, CHECKS)

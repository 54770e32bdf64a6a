"""What every defense promises, checked on tiny images with every training cut to one epoch."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context, Node, PluginSource, Source, Stage
from bdtune.plugins import registry
from bdtune.plugins.attack import Attack
from bdtune.plugins.data import ImageSet, LabelSet, Truth
from bdtune.plugins.dataset import Dataset
from bdtune.plugins.defense import Defense, DefenseInputs, diagnosis
from bdtune.plugins.handles import FIT, LABELS
from bdtune.plugins.poison_plan import PoisonPlan, Rows
from bdtune.poisoning.sources import FitSet
from bdtune.reading.resident import InProcess
from bdtune.testing.described import check_described
from bdtune.testing.reach import reachable
from bdtune.testing.small import NUMERICS, held, shown
from bdtune.training.supervised import Supervised
from bdtune.trials.chain import Bindings, bound
from bdtune.trials.graph import trial_graph

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.knobs import Knobs

CLASSES, EACH, SEED = 3, 16, 5
Pipeline = Literal["resident", "stream"]


def short(cls: type[Knobs]) -> dict[str, Any]:
    """Return knobs of a defense with every training cut to one epoch and small batches."""
    from bdtune.knobs import Knobs

    knobs: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Knobs):
            knobs[name] = short(field.annotation)
        elif name == "epochs":
            knobs[name] = 1
        elif name == "batch_size":
            knobs[name] = 16
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


def given() -> DefenseInputs:
    """Return what a defense gets: the set in memory and a narrow network."""
    data = observed_set()
    labels = LabelSet(data.labels, data.num_classes)
    model = bdtune.model("resnet18", width=2)
    fit, names, network = (held(type(value).__name__, value) for value in (data, labels, model))
    return DefenseInputs(fit, names, network, seed=SEED, numerics=NUMERICS)


def truth(seed: int) -> Truth:
    """Return a truth that fits the observed set; another seed, another truth."""
    rng = np.random.default_rng(seed)
    observed = observed_set().labels
    role = rng.integers(0, 2, len(observed)).astype(np.uint8)
    return Truth(rng.permutation(observed), observed, role, seed % CLASSES)


class Run:
    """Computes nodes once each, in this process, and keeps what came in and out."""

    def __init__(self) -> None:
        self.done: dict[Node, tuple[dict[str, Any], Artefact]] = {}

    def __call__(self, node: Node) -> Artefact:
        if node not in self.done:
            inputs = {
                name: self(each) if isinstance(each, Node) else each.load(None, {})  # type: ignore[arg-type]
                for name, each in node.inputs.items()
            }
            self.done[node] = inputs, node.stage.run(Context(node.seed, node.numerics), **inputs)
        return self.done[node][1]

    def all(self, defense: Defense, source: DefenseInputs) -> tuple[dict[str, Node], Node | None]:
        """Compute a defense's chain and what judges it, the latter first, so that it could do its harm."""
        chain = defense.build(source)
        judge = diagnosis(defense, chain, held("truth", truth(0)))
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


def check_chain(name: str) -> None:
    """The chain is named, ends in a classifier, and has the undefended training of the defense's budget."""
    defense = small_defense(name)
    chain = defense.build(given())
    assert chain["classifier"].stage.classifier
    assert set(defense.evidence) <= set(chain)
    assert defense.judged[-1] == "classifier"
    assert all(chain[name].stage.classifier for name in defense.judged)
    undefended = defense.baseline_training()
    assert isinstance(undefended, Supervised)
    assert (undefended.name, undefended.classifier) == ("supervised", True)
    assert bdtune.defense("none", train=undefended).build(given())["classifier"].stage == undefended
    assert {node.recipe for node in chain.values()} >= {node.recipe for node in chain["classifier"].walk()}
    for node in chain.values():
        assert isinstance(node.stage, Stage)
        assert (node.master_seed, node.numerics) == (SEED, NUMERICS)


def check_epochs(name: str, **knobs: Any) -> None:
    """The undefended model is trained for as many epochs as the defended one."""
    raw = {"dataset": "digits", "attack": "badnets", "defense": {"name": name, **knobs}}
    spec, wrong = parse_trial(raw)
    assert spec is not None, wrong
    assert trial_graph(spec).budget == spec.defense.baseline_training().epochs


def check_recipes(name: str) -> None:
    """Equal knobs give equal recipes."""
    first, second = (small_defense(name).build(given()) for _ in range(2))
    assert [node.recipe for node in first.values()] == [node.recipe for node in second.values()]


def check_reads_what_it_is_given(name: str) -> None:
    """The chain reads the poisoned set, its labels and networks, and nothing else."""
    have = given()
    handles = replace(
        have, fit=FIT, labels=LABELS, model=PluginSource(plugin=bdtune.model("resnet18", width=2))
    )
    bindings = Bindings({FIT: have.fit, LABELS: have.labels}, None, SEED)
    chain = bound(name, small_defense(name).build(handles), bindings)
    read = [value for last in chain.values() for node in last.walk() for value in node.inputs.values()]
    sources = {
        id(value) for value in read if isinstance(value, Source) and not isinstance(value, PluginSource)
    }
    assert sources <= {id(have.fit), id(have.labels)}


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
                    assert not any(isinstance(each, Truth | PoisonPlan | Attack | Dataset) for each in found)
            digests.append({key: digest_of(run(node).arrays, run(node).info) for key, node in chain.items()})
        assert digests[0] == digests[1]


def check_diagnosis_and_figure(name: str) -> None:
    """What is diagnosed are finite numbers under the defense's name; a figure has axes."""
    defense, run = small_defense(name), Run()
    chain, judge = run.all(defense, given())
    assert (judge is None) == (not defense.evidence)
    if judge is None:
        return
    assert judge.stage.kind == "derive"
    found = run(judge)
    assert not found.arrays
    assert found.info
    assert all(key.startswith(f"{name}/") and np.isfinite(value) for key, value in found.info.items())
    seen = {key: run(chain[key]) for key in defense.pictured_nodes() if key in chain}
    picture = defense.figure(seen, truth(0))
    assert picture is None or picture.axes


def check_derived_stages(name: str) -> None:
    """Derived stages need neither torch nor images, since the driver runs them, and repeat exactly."""
    run = Run()
    run.all(small_defense(name), given())
    torch = sys.modules["torch"]
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        for node, (inputs, before) in run.done.items():
            if node.stage.kind == "derive":
                assert not any(isinstance(value, ImageSet) for value in inputs.values())
                again = node.stage.run(Context(node.seed, node.numerics), **inputs)
                assert digest_of(again.arrays, again.info) == digest_of(before.arrays, before.info)
    finally:
        sys.modules["torch"] = torch


def check_subsets(name: str) -> None:
    """A subset holds ids and labels only: equal content must give an equal digest, whoever made it."""
    run = Run()
    run.all(small_defense(name), given())
    for inputs, _ in run.done.values():
        if "subset" in inputs:
            subset = inputs["subset"]
            types = {key: value.dtype for key, value in subset.arrays.items()}
            assert types == {"ids": np.int64, "labels": np.int64}
            assert not subset.info


CHECKS: tuple[Callable[[str], None], ...] = (
    check_chain,
    check_epochs,
    check_recipes,
    check_reads_what_it_is_given,
    check_truth_is_not_read,
    check_diagnosis_and_figure,
    check_derived_stages,
    check_subsets,
)


def check_defense(name: str) -> None:
    """Check a defense by name; raises `AssertionError` for the first broken promise."""
    check_described("defenses", name)
    for check in CHECKS:
        check(name)

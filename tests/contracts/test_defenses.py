"""What every defense file must satisfy by being there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context, Node, Source, Stage
from bdtune.engine.stage import PluginSource
from bdtune.knobs import Knobs
from bdtune.plugins import registry
from bdtune.plugins.attack import Attack
from bdtune.plugins.data import ImageSet, LabelSet, Truth
from bdtune.plugins.dataset import Dataset
from bdtune.plugins.defense import Defense, DefenseInputs, diagnosis
from bdtune.plugins.handles import FIT, LABELS
from bdtune.plugins.poison_plan import PoisonPlan, Rows
from bdtune.poisoning.sources import FitSet
from bdtune.reading.resident import InProcess
from bdtune.training.supervised import Supervised
from bdtune.trials.chain import Bindings, bound
from bdtune.trials.graph import trial_graph
from tests.doubles import CPU, Is
from tests.reach import reachable
from tests.trained import one_thread, shown

DEFENSES = registry.names("defenses")
CLASSES, EACH = 3, 16


def short(cls: type[Knobs]) -> dict[str, Any]:
    """Knobs of a defense with every training cut to one epoch and small batches."""
    knobs: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Knobs):
            knobs[name] = short(field.annotation)
        elif name == "epochs":
            knobs[name] = 1
        elif name == "batch_size":
            knobs[name] = 16
    return knobs


def make(name: str) -> Defense:
    cls = registry.load("defenses", name)
    return cls(**short(cls))


def observed_set() -> ImageSet:
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), EACH))
    images = rng.integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    images[np.arange(len(labels)), labels] = 255  # a row of white that gives the class away
    return ImageSet(images, labels, CLASSES, (0.5,) * 3, (0.25,) * 3)


def given() -> DefenseInputs:
    data = observed_set()
    labels = LabelSet(data.labels, data.num_classes)
    model = bdtune.model("resnet18", width=2)
    fit, names, network = (Is(word=type(value).__name__, value=value) for value in (data, labels, model))
    return DefenseInputs(fit, names, network, seed=5, numerics=CPU)


def truth(seed: int) -> Truth:
    """A truth that fits the observed set; another seed, another truth."""
    rng = np.random.default_rng(seed)
    observed = observed_set().labels
    return Truth(
        rng.permutation(observed),
        observed,
        rng.integers(0, 2, len(observed)).astype(np.uint8),
        seed % CLASSES,
    )


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


@cache
def computed(name: str) -> tuple[Run, Defense, dict[str, Node]]:
    """Return a defense's chain and diagnosis with all that they give, for tests that only look."""
    run, defense = Run(), make(name)
    chain = defense.build(given())
    judge = diagnosis(defense, chain, Is(word="truth", value=truth(0)))
    if judge is not None:
        chain = {**chain, "diagnosis": judge}
    with one_thread():
        for node in chain.values():
            run(node)
    return run, defense, chain


class Unseen(Attack):
    """Poison that shows in no image and no label: who is poisoned can be known from the plan alone."""

    clean_label: ClassVar[bool] = True

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return images


def poisoned_set(pipeline: Literal["resident", "stream"], seed: int) -> ImageSet:
    """Return the observed set as a trial loads it; of another seed, others are poisoned in it."""
    data = observed_set()
    assert isinstance(data.images, np.ndarray)
    source = FitSet(dataset=shown(data.images, data.labels, CLASSES), attack=Unseen(rate=0.1), seed=seed)
    return source.load(InProcess(pipeline=pipeline), {})


@pytest.mark.parametrize("name", DEFENSES)
def test_describes_itself(name: str) -> None:
    assert issubclass(registry.load("defenses", name), Defense)
    description = registry.describe("defenses", name)
    assert description.summary
    assert description.source


@pytest.mark.parametrize("name", DEFENSES)
def test_chain_is_named_and_ends_in_a_classifier(name: str) -> None:
    defense = make(name)
    chain = defense.build(given())
    assert chain["classifier"].stage.classifier
    assert set(defense.evidence) <= set(chain)
    assert defense.judged[-1] == "classifier"
    assert all(chain[name].stage.classifier for name in defense.judged)
    baseline = defense.baseline_training()
    assert isinstance(baseline, Supervised)
    assert (baseline.name, baseline.classifier) == ("supervised", True)
    assert bdtune.defense("none", train=baseline).build(given())["classifier"].stage == baseline
    assert {node.recipe for node in chain.values()} >= {node.recipe for node in chain["classifier"].walk()}
    for node in chain.values():
        assert isinstance(node.stage, Stage)
        assert (node.master_seed, node.numerics) == (5, CPU)


@pytest.mark.parametrize("defense", [*DEFENSES, {"name": "abl", "form": "joint"}], ids=str)
def test_the_undefended_baseline_has_as_many_epochs(defense: Any) -> None:
    spec, faults = parse_trial({"dataset": "digits", "attack": "badnets", "defense": defense})
    assert spec is not None, faults
    assert trial_graph(spec).budget == spec.defense.baseline_training().epochs


@pytest.mark.parametrize("name", DEFENSES)
def test_equal_knobs_give_equal_recipes(name: str) -> None:
    first, second = make(name).build(given()), make(name).build(given())
    assert {key: node.recipe for key, node in first.items()} == {
        key: node.recipe for key, node in second.items()
    }


@pytest.mark.parametrize("name", DEFENSES)
def test_chain_reads_nothing_but_what_it_was_given(name: str) -> None:
    have = given()
    handles = replace(have, fit=FIT, labels=LABELS, model=PluginSource(plugin=bdtune.model("resnet18", width=2)))
    chain = bound(name, make(name).build(handles), Bindings({FIT: have.fit, LABELS: have.labels}, None, 5))
    read = [value for last in chain.values() for node in last.walk() for value in node.inputs.values()]
    sources = {id(value) for value in read if isinstance(value, Source) and not isinstance(value, PluginSource)}
    assert sources <= {id(have.fit), id(have.labels)}


@pytest.mark.parametrize("pipeline", ["resident", "stream"])
@pytest.mark.parametrize("name", DEFENSES)
def test_no_stage_changes_when_the_truth_is_shuffled(
    name: str, pipeline: Literal["resident", "stream"]
) -> None:
    """Images and observed labels stay; true labels, poison flags and target change."""
    defense = make(name)
    digests = []
    for seed in (0, 1):
        run = Run()
        chain = defense.build(replace(given(), fit=Is(word="fit", value=poisoned_set(pipeline, seed))))
        judge = diagnosis(defense, chain, Is(word="truth", value=truth(seed)))
        if judge is not None:
            run(judge)  # before the rest, so that it could do its harm
        for node in chain.values():
            run(node)
        for node, (inputs, _) in run.done.items():
            if node is not judge:
                found = [each for value in inputs.values() for each in reachable(value)]
                assert not any(isinstance(each, Truth | PoisonPlan | Attack | Dataset) for each in found)
        digests.append({key: digest_of(run(node).arrays, run(node).info) for key, node in chain.items()})
    assert digests[0] == digests[1]


def test_the_shuffled_truth_shows_in_the_plan_alone() -> None:
    sets = [poisoned_set("resident", seed) for seed in (0, 1)]
    assert all(np.array_equal(data.images, observed_set().images) for data in sets)
    assert all(np.array_equal(data.labels, observed_set().labels) for data in sets)
    plans = [Unseen(rate=0.1).plan(observed_set().labels, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(plans[0].poison_ids, plans[1].poison_ids)
    streamed = poisoned_set("stream", 0).images_at(np.arange(CLASSES * EACH))
    assert np.array_equal(streamed, observed_set().images)


@pytest.mark.parametrize("name", DEFENSES)
def test_diagnosis_and_figure(name: str) -> None:
    run, defense, chain = computed(name)
    judge = chain.get("diagnosis")
    assert (judge is None) == (not defense.evidence)
    if judge is None:
        return
    assert judge.stage.kind == "derive"
    found = run(judge)
    assert not found.arrays
    assert found.info
    assert all(key.startswith(f"{name}/") and np.isfinite(value) for key, value in found.info.items())
    evidence = {key: run(chain[key]) for key in (*defense.evidence, *defense.pictured)}
    picture = defense.figure(evidence, truth(0))
    assert picture is None or picture.axes


@pytest.mark.parametrize("name", DEFENSES)
def test_derived_stages_need_no_torch_and_no_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver runs them: it has no images at hand, and no time to import torch."""
    run, *_ = computed(name)
    monkeypatch.setitem(sys.modules, "torch", None)
    for node, (inputs, before) in run.done.items():
        if node.stage.kind == "derive":
            assert not any(isinstance(value, ImageSet) for value in inputs.values())
            again = node.stage.run(Context(node.seed, node.numerics), **inputs)
            assert digest_of(again.arrays, again.info) == digest_of(before.arrays, before.info)


@pytest.mark.parametrize("name", DEFENSES)
def test_subsets_hold_ids_and_labels_only(name: str) -> None:
    """Equal content must give an equal digest, whoever made it."""
    run, *_ = computed(name)
    for inputs, _ in run.done.values():
        if "subset" in inputs:
            subset = inputs["subset"]
            assert {key: value.dtype for key, value in subset.arrays.items()} == {
                "ids": np.int64,
                "labels": np.int64,
            }
            assert not subset.info


def test_making_defenses_and_chains_loads_no_torch() -> None:
    code = (
        "import sys, bdtune; from bdtune.plugins import registry; from bdtune.plugins.defense import DefenseInputs\n"
        "from bdtune.plugins.handles import FIT, LABELS\n"
        "from bdtune.engine.stage import PluginSource\n"
        "model = PluginSource(plugin=bdtune.model('resnet18'))\n"
        "for name in registry.names('defenses'):\n"
        "    bdtune.defense(name).build(DefenseInputs(FIT, LABELS, model))\n"
        "heavy = {'torch', 'matplotlib', 'ray', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""A-ABL as a defense: its knobs, what its trials share, and how it is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.defenses.aabl.losses import IFGSM
from bdtune.defenses.aabl.split import Threshold, VulnerableSplit
from bdtune.engine.execute import Executor
from bdtune.engine.plan import make_plan
from bdtune.engine.resolve import Resolver
from bdtune.engine.stage import Artefact, Context
from bdtune.engine.store import Store
from bdtune.plugins.data import ImageSet, LabelSet, Truth
from bdtune.training.supervised import Supervised
from bdtune.trials.graph import trial_graph
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.defense import DefenseInputs

CTX = Context(seed=1, numerics=CPU)


@pytest.fixture
def data() -> ImageSet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    return ImageSet(images, rng.integers(0, 3, 40), 3, (0.3, 0.25, 0.2), (0.2, 0.2, 0.25))


def test_knobs_have_the_papers_defaults() -> None:
    aabl = bdtune.defense("aabl")
    assert (aabl.naive.epochs, aabl.naive.optimizer, aabl.naive.lr) == (20, "adam", 1e-3)
    assert aabl.naive.schedule == "constant"
    assert (aabl.ifgsm.eps, aabl.ifgsm.step, aabl.ifgsm.steps) == (2 / 255, 2 / 255, 5)
    assert (aabl.train.pgd.eps, aabl.train.pgd.step, aabl.train.pgd.steps) == (8 / 255, 2 / 255, 10)
    assert (aabl.train.epochs, aabl.train.lr, aabl.train.milestones) == (100, 0.1, (0.5, 0.75, 0.9))
    assert (aabl.score, aabl.rule, aabl.clamp) == ("sce", "otsu", (0.1, 0.9))


def test_one_knob_of_the_split_leaves_its_others_as_they_are() -> None:
    aabl = bdtune.defense("aabl", ifgsm={"eps": "4/255"})
    assert aabl.ifgsm == IFGSM(eps=4 / 255, step=2 / 255, steps=5, random_start=False)
    assert aabl.train == bdtune.defense("adversarial_training").train


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"clamp": (0.9, 0.1)}, "clamp must rise, got 0.9 to 0.1"),
        ({"sce_a": 0, "sce_b": 0}, "sce_a or sce_b must be above 0"),
        ({"ifgsm": {"eps": 8}}, "less than or equal to 1"),
        ({"clamp": (0.1, 1.9)}, "less than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_meant(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bdtune.defense("aabl", **knobs)


def trial(**knobs: Any) -> Any:
    short = {"naive": {"epochs": 1}, "train": {"epochs": 1, "pgd": {"steps": 1}}}
    raw = {"dataset": "digits", "attack": "badnets", "model": {"name": "resnet18", "width": 4}}
    defense = {"name": "aabl", **short, **knobs}
    found, faults = parse_trial({**raw, "defense": defense})
    assert not faults
    return trial_graph(found)


def counts(tmp_path: Path, graphs: list[Any]) -> dict[str, tuple[int, int]]:
    plan = make_plan([graph.goals for graph in graphs], 0, Resolver(Store(tmp_path)))
    return {name: (count.unique, count.without_sharing) for name, count in plan.stages.items()}


def test_a_grid_over_the_splits_perturbation_trains_one_naive_model(tmp_path: Path) -> None:
    graphs = [
        trial(ifgsm={"eps": f"{eps}/255", "steps": steps}, score=score)
        for eps in (1, 2, 4)
        for steps in (3, 5)
        for score in ("sce", "ce")
    ]
    found = counts(tmp_path, graphs)
    assert found["naive"] == (1, 12)
    assert found["adversarial_losses"] == (6, 12)  # scores are free
    assert found["scores"] == (12, 12)


def test_what_comes_after_the_split_leaves_it_shared(tmp_path: Path) -> None:
    graphs = [
        trial(train={"epochs": 1, "pgd": {"eps": eps, "steps": 1}}, final=final)
        for eps in ("4/255", "8/255")
        for final in ("adversarial", "natural")
    ]
    found = counts(tmp_path, graphs)
    for name in ("naive", "adversarial_losses", "scores", "threshold", "aabl_split"):
        assert found[name] == (1, 4)
    assert found["adversarial_training"] == (2, 2)
    assert found["supervised"] == (1, 2)  # without an attack its radius counts for nothing


def given_of(data: ImageSet, model: Any) -> DefenseInputs:
    from bdtune.plugins.defense import DefenseInputs

    labels = LabelSet(data.labels, data.num_classes)
    fit, names, network = (Is(word=type(value).__name__, value=value) for value in (data, labels, model))
    return DefenseInputs(fit, names, network, numerics=CPU)


SHORT: dict[str, Any] = {
    "naive": {"epochs": 1, "batch_size": 16, "augment": "none"},
    "train": {"epochs": 1, "batch_size": 16, "augment": "none", "pgd": {"steps": 1}},
}


def test_equal_splits_share_the_training(tmp_path: Path, data: ImageSet) -> None:
    model = bdtune.model("resnet_s", stem_width=4)
    executor, given = Executor(Store(tmp_path), None), given_of(data, model)  # type: ignore[arg-type]
    computed: list[str] = []

    def note(event: Any) -> None:
        if event.what == "computed":
            computed.append(event.node.name)

    def classifier(name: str, **knobs: Any) -> Artefact:
        computed.clear()
        return executor.compute(bdtune.defense(name, **knobs).build(given)["classifier"], note)

    classifier("aabl", **SHORT, rule="fixed", keep=0.5)
    assert {"naive", "adversarial_losses", "adversarial_training"} <= set(computed)
    classifier("aabl", **SHORT, rule="fixed", keep=0.5, score="ce")
    assert computed == ["scores", "aabl_split"]
    everything = classifier("aabl", **SHORT, rule="fixed", keep=1.0)
    assert computed == ["aabl_split", "adversarial_training"]
    alone = classifier("adversarial_training", train=SHORT["train"])
    assert not computed  # nothing left out: plain adversarial training
    assert all(np.array_equal(everything.arrays[name], value) for name, value in alone.arrays.items())
    classifier("aabl", **SHORT, perturbation="augmix", rule="fixed", keep=0.5)
    assert "naive" not in computed
    assert "augmented_losses" in computed


def test_the_final_training_starts_from_random_weights() -> None:
    chain = trial().chain
    assert set(chain["classifier"].inputs) == {"data", "subset", "model"}  # no weights to start from
    assert chain["classifier"].seed != chain["naive"].seed


def test_the_baseline_is_trained_as_the_defended_classifier() -> None:
    defense = bdtune.defense("aabl", train={"epochs": 3, "lr": 0.05})
    assert defense.baseline_training() == Supervised(epochs=3, lr=0.05, milestones=(0.5, 0.75, 0.9))


def judged(scores: Any, poison: Any, **knobs: Any) -> tuple[dict[str, float], Any, dict[str, Artefact]]:
    """Split and judge made-up scores; predictions flip where a score is above 0.5."""
    defense = bdtune.defense("aabl", **knobs)
    scores, poison = np.asarray(scores, float), np.asarray(poison, bool)
    zeros = np.zeros(len(scores), np.int64)
    losses = Artefact(
        {"predictions": (scores > 0.5).astype(np.int64), "clean_predictions": zeros, "unmoved": scores == 0}
    )
    found = {"losses": losses, "scores": Artefact({"scores": scores, "clean_scores": scores / 2})}
    found["naive"] = Artefact({"trace.losses": np.stack([scores + 1, scores]).astype(np.float32)})
    found["threshold"] = Threshold(bins=defense.bins).run(CTX, scores=found["scores"])
    stage = VulnerableSplit(rule=defense.rule, clamp=defense.clamp, keep=defense.keep)
    read = {name: found[name] for name in ("losses", "scores", "threshold")}
    found["split"] = stage.run(CTX, data=LabelSet(zeros, 2), **read)
    rows = np.arange(len(found["split"].arrays["ids"]), dtype=np.float32)
    found["classifier"] = Artefact({"trace.losses": rows[None]} if defense.final == "adversarial" else {})
    truth = Truth(zeros, zeros, poison.astype(np.uint8), 0)
    return defense.diagnose(found, truth), defense.figure(found, truth), found


def test_diagnosis_counts_what_was_isolated() -> None:
    scores = [0.0, 0.01, 0.02, 0.03, 1, 1, 1, 1, 1, 1]
    poison = [True, True, True, False, True, False, False, False, False, False]
    found, picture, _ = judged(scores, poison)
    assert found["gamma"] == 0.6
    assert found["rho_vul"] == pytest.approx(1 / 6)
    assert found["kept_poison"] == 1 / 4
    assert found["kept_clean"] == 5 / 6
    assert found["isolation_precision"] == 3 / 4
    assert found["isolation_recall"] == 3 / 4
    assert found["flipped_poison"] == 1 / 4
    assert found["flipped_clean"] == 5 / 6
    assert found["unmoved"] == 0.1
    assert found["smallest_class"] == 0.6
    assert found["clamped"] == 0
    assert found["separability"] > 0.99
    trained, *histograms, final = picture.axes
    assert [line.get_label() for line in trained.get_lines()] == ["clean", "poisoned"]
    assert trained.get_lines()[1].get_ydata() == pytest.approx([1.2575, 0.2575])
    assert [ax.get_title()[:9] for ax in histograms] == ["scores of"] * 2
    assert [line.get_label() for line in histograms[1].get_lines()] == ["kept from 1"]
    assert [line.get_ydata() for line in final.get_lines()] == [[3.0], [0.0]]  # rows 1 to 5 of 6, and row 0
    assert len(judged(scores, poison, final="natural")[1].axes) == 3


def test_images_without_a_gradient_are_counted_where_there_are_gradients() -> None:
    scores = np.linspace(0, 1, 10)
    found, _, artefacts = judged(scores, scores < 0)
    assert found["unmoved"] == 0.1
    losses = {k: v for k, v in artefacts["losses"].arrays.items() if k != "unmoved"}  # of augmentations
    truth = Truth(np.zeros(10, np.int64), np.zeros(10, np.int64), np.zeros(10, np.uint8), 0)
    other = bdtune.defense("aabl").diagnose({**artefacts, "losses": Artefact(losses)}, truth)
    assert other == {name: value for name, value in found.items() if name != "unmoved"}


@pytest.mark.slow
def test_diagnosis_tells_that_the_clamp_decided() -> None:
    scores = np.array([0.0] + [1.0] * 19)
    found, _, artefacts = judged(scores, scores == 0)
    assert found["clamped"] == 1
    assert found["gamma"] == 0.9
    assert len(artefacts["split"].arrays["ids"]) == 18
    assert judged(scores, scores == 0, clamp=None)[0]["gamma"] == 0.95
    assert judged(scores, scores < 0, clamp=None)[0]["rho_vul"] == 0.0
    assert "isolation_recall" not in judged(scores, scores < 0)[0]

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bdtune
from bdtune.engine.execute import Executor
from bdtune.engine.input_source import Source
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.engine.store import Store
from bdtune.plugins.data import ImageSet, LabelSet, Truth
from bdtune.plugins.defense import Defense, DefenseInputs, Diagnose, diagnosis
from bdtune.training.supervised import Supervised
from tests.doubles import Is, Nowhere

if TYPE_CHECKING:
    from bdtune.engine.node import Node

FEATURES = 8
CTX = Context(seed=1, numerics=Numerics(device="cpu", precision="fp32"))


def mixture(poison: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Truth]:
    """Features z [N, D], observed labels and truth of four Gaussian classes; class 0 is the target.

    nd: poisoned samples lie where their own classes do; d: they lie together, far from all.
    """
    rng = np.random.default_rng(seed)
    means = 3.0 * rng.standard_normal((4, FEATURES))
    labels = np.repeat([0, 1, 2, 3], 150)
    h = means[labels] + rng.standard_normal((600, FEATURES))
    observed = labels.copy()
    role = np.zeros(600, np.uint8)
    if poison != "none":
        chosen = rng.choice(np.flatnonzero(labels != 0), 120, replace=False)
        observed[chosen], role[chosen] = 0, 1
        if poison == "d":
            h[chosen] = 40.0 + 0.5 * rng.standard_normal((120, FEATURES))
    z = ((h - h.mean(0)) / h.std(0, ddof=1)).astype(np.float32)
    return z, observed, Truth(labels, observed, role, 0)


def decide(defense: Defense, z: np.ndarray, observed: np.ndarray, truth: Truth) -> dict[str, Any]:
    """Run a chain from the features to the decisions, and judge it."""
    labels = Is(word="labels", value=LabelSet(observed, 4))
    fit = Is(
        word="fit", value=ImageSet(np.zeros((len(z), 8, 8, 3), np.uint8), observed, 4, (0.5,) * 3, (0.5,) * 3)
    )
    chain = defense.build(
        DefenseInputs(fit, labels, Is(word="model", value=None), seed=1, numerics=CTX.numerics)
    )
    done: dict[Node, Artefact] = {chain["features"]: Artefact({"z": z})}

    def value(node: Node | Source) -> Any:
        if isinstance(node, Source):
            return node.load(None, {})
        if node not in done:
            done[node] = node.stage.run(CTX, **{name: value(each) for name, each in node.inputs.items()})
        return done[node]

    judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
    assert judge is not None
    found = {name.removeprefix("gssd/"): each for name, each in value(judge).info.items()}
    return {**found, **{name: value(chain[name]) for name in defense.evidence}}


def test_a_non_disruptive_attack_is_found_split_and_relabelled() -> None:
    knobs = {"flows": {"epochs": 25}, "beta_d": 1.0, "beta_nd": 1.5}
    found = decide(bdtune.defense("gssd", **knobs), *mixture("nd"))
    assert found["class_tests"].arrays["verdict"].tolist() == [1, 0, 0, 0]
    assert found["energy_target"] < 0.75 * found["energy_others_min"]
    assert found["detected_target"] == found["target_nd"] == 1
    assert found["false_alarms"] == 0
    assert found["kept_poison"] <= 0.02  # 44 % of the class is poison
    assert found["relabel_poison"] >= 0.98
    assert found["relabel_acc"] >= 0.95
    assert found["distance_own"] < 0.7 * found["distance_target"]  # poison lies where its own classes do
    assert found["relabel_recall"] == pytest.approx(int(0.15 * 270) / 120)


def test_without_poison_the_same_settings_find_nothing() -> None:
    knobs = {"flows": {"epochs": 25}, "beta_d": 1.0, "beta_nd": 1.5}
    found = decide(bdtune.defense("gssd", **knobs), *mixture("none"))
    assert found["class_tests"].arrays["verdict"].tolist() == [0, 0, 0, 0]
    assert found["kept"] == 1
    assert found["relabelled"] == 0
    assert "relabel_acc" not in found
    assert "relabel_recall" not in found


def test_a_disruptive_attack_is_found_by_its_low_mode() -> None:
    knobs = {"flows": {"epochs": 25}, "lambda": 0.1, "beta_nd": 0.0}
    found = decide(bdtune.defense("gssd", **knobs), *mixture("d"))
    assert found["class_tests"].arrays["verdict"].tolist() == [2, 0, 0, 0]
    assert found["target_d"] == 1
    assert found["kept_poison"] == 0
    assert found["relabelled"] == 0


def test_the_discriminative_variant_splits_a_given_class() -> None:
    knobs = {
        "density": "discriminative",
        "oracle_target": 0,
        "discriminative": {"epochs": 15, "batch_size": 32},
    }
    defense = bdtune.defense("gssd", **knobs)
    found = decide(defense, *mixture("nd"))
    assert found["class_tests"].arrays["verdict"].tolist() == [1, 0, 0, 0]
    assert found["kept_poison"] <= 0.05
    assert found["relabel_acc"] >= 0.9
    assert np.exp(found["density"].arrays["L"]).sum(1) == pytest.approx(np.ones(600), abs=1e-5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"alpha_c": 0.9, "alpha_p": 0.2}, "at most 1, got 0.9 \\+ 0.2; lower one of them"),
        ({"density": "discriminative"}, "needs oracle_target"),
        ({"beta_d": 1.2}, "less than or equal to 1"),
        ({"lambda": 0}, "greater than 0"),
        ({"flows": {"epoch": 3}}, "flows.epoch"),
    ],
)
def test_settings_that_cannot_be_meant(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bdtune.defense("gssd", **knobs)


def test_the_oracles_class_must_exist() -> None:
    defense = bdtune.defense("gssd", oracle_target=10)
    assert [problem.path for problem in defense.check(10)] == ["oracle_target"]
    assert defense.check(11) == []


def test_knobs_have_the_papers_defaults() -> None:
    gssd = bdtune.defense("gssd").model_dump()
    paper = {
        "beta_nd": 0.6,
        "beta_d": 0.05,
        "lambda": 0.75,
        "alpha_c": 0.3,
        "alpha_c_d": 0.15,
        "alpha_p": 0.15,
    }
    assert {name: gssd[name] for name in paper} == paper
    assert gssd["bins"] == 30
    assert (gssd["simclr"]["epochs"], gssd["simclr"]["batch_size"], gssd["simclr"]["lr"]) == (100, 256, 3e-4)
    assert (gssd["flows"]["epochs"], gssd["flows"]["batch_size"], gssd["flows"]["betas"]) == (
        50,
        16,
        (0.9, 0.99),
    )
    assert (gssd["retrain"]["epochs"], gssd["retrain"]["lr"]) == (200, 0.1)
    assert gssd["finetune"] == {**gssd["retrain"], "epochs": 2, "lr": 1e-4, "schedule": "constant"}


def test_lambda_is_one_knob_by_either_name() -> None:
    assert bdtune.defense("gssd", **{"lambda": 0.9}) == bdtune.defense("gssd", lambda_=0.9)


@pytest.fixture
def tiny() -> tuple[DefenseInputs, dict[str, Any]]:
    """Forty random images, a small network, and trainings of one epoch."""
    rng = np.random.default_rng(0)
    observed = np.repeat([0, 1], 20)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    given = DefenseInputs(
        Is(word="fit", value=ImageSet(images, observed, 2, (0.5,) * 3, (0.25,) * 3)),
        Is(word="labels", value=LabelSet(observed, 2)),
        Is(word="model", value=bdtune.model("resnet18", width=2)),
        numerics=CTX.numerics,
    )
    short = {"simclr": {"epochs": 1, "batch_size": 20}, "flows": {"epochs": 1}, "retrain": {"epochs": 1}}
    return given, short


def test_settings_of_equal_verdict_share_every_training(
    tmp_path: Any, tiny: tuple[DefenseInputs, dict[str, Any]]
) -> None:
    given, short = tiny
    executor = Executor(Store(tmp_path), Nowhere())  # type: ignore[arg-type]
    computed: list[str] = []

    def note(event: Any) -> None:
        if event.what == "computed":
            computed.append(event.node.name)

    def classifier(defense: Defense) -> Artefact:
        computed.clear()
        return executor.compute(defense.build(given)["classifier"], note)

    nothing = {**short, "beta_nd": -100.0, "beta_d": 1.0}
    first = classifier(bdtune.defense("gssd", **nothing))
    assert computed.count("supervised") == 1
    classifier(bdtune.defense("gssd", **{**nothing, "beta_nd": -99.0, "lambda": 0.5, "alpha_c": 0.4}))
    assert computed == ["class_tests", "split"]  # nothing is trained
    undefended = classifier(
        bdtune.defense("none", train=bdtune.defense("gssd", **nothing).baseline_training())
    )
    assert computed == ["all_samples"]  # nothing was removed: the same training
    assert first.info["skipped"]
    assert all(np.array_equal(first.arrays[name], value) for name, value in undefended.arrays.items())
    found = classifier(bdtune.defense("gssd", **{**short, "beta_nd": 1e9, "order": "nd_first"}))
    assert {"supervised", "finetune"} <= set(computed)
    assert "skipped" not in found.info
    assert not {"simclr", "features", "flows", "density"} & set(computed)


def test_the_baseline_is_trained_as_the_defended_classifier() -> None:
    defense = bdtune.defense("gssd", retrain={"epochs": 3, "lr": 0.05})
    assert defense.baseline_training() == Supervised(epochs=3, lr=0.05)


def test_the_picture_shows_each_class_with_its_verdict() -> None:
    defense = bdtune.defense("gssd", flows={"epochs": 3}, order="nd_first", beta_nd=1.5)
    z, observed, truth = mixture("nd")
    found = decide(defense, z, observed, truth)
    picture = defense.figure({name: found[name] for name in defense.pictured_nodes()}, truth)
    assert picture is not None
    titles = [ax.get_title() for ax in picture.axes]
    assert len(titles) == 4
    assert titles[0].startswith("class 0")
    assert len(bdtune.defense("none").evidence) == 0


def test_settings_with_equal_verdicts_have_one_picture() -> None:
    """alpha_c decides what is kept of a class, which the picture does not show."""
    defense = bdtune.defense("gssd")
    assert set(defense.pictured_nodes()) == {"density", "class_tests"}


def test_an_energy_of_a_flow_that_was_not_fitted_is_short() -> None:
    defense = bdtune.defense("gssd", flows={"epochs": 1})
    z, observed, truth = mixture("nd")
    found = decide(defense, z, observed, truth)
    tests = found["class_tests"]
    energy = np.array([238154.3, 0.889, 12.19, np.inf])
    found["class_tests"] = Artefact({**tests.arrays, "energy": energy})
    picture = defense.figure({name: found[name] for name in defense.pictured_nodes()}, truth)
    assert picture is not None
    titles = " ".join(ax.get_title() for ax in picture.axes)
    assert {"2.4e+05", "0.889", "12.2", "inf"} <= set(titles.split())


def test_a_histogram_is_two_outlines_with_the_poison_on_top() -> None:
    from matplotlib.figure import Figure

    from bdtune.defending.loss_pictures import draw_stacked

    rng = np.random.default_rng(0)
    values, poison = rng.random(200), rng.random(200) < 0.3
    ax, edges = Figure().add_subplot(), np.linspace(0, 1, 11)
    draw_stacked(ax, values, poison, edges)
    clean, both = (patch.get_data() for patch in ax.patches)
    assert np.array_equal(clean.values, np.histogram(values[~poison], edges)[0])
    assert np.array_equal(both.values, np.histogram(values, edges)[0])
    assert np.array_equal(both.baseline, clean.values)

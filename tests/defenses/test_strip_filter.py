"""STRIP as a filter: every row is scored, the clean set sets the threshold, a classifier learns the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.defending.blending import Entropies, LowEntropy, Overlays
from bdtune.defenses.strip_filter import STRIPFilter, report
from bdtune.detection import empirical_threshold
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import ImageSet, ImageStream, Truth
from bdtune.plugins.defense import Diagnose, diagnosis
from bdtune.training.weights import module_arrays
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.node import Node
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(3, CPU)


def offered(given: DefenseInputs) -> DefenseInputs:
    """With thirty clean images of the three classes."""
    rng = np.random.default_rng(3)
    labels = np.tile([0, 1, 2], 10)
    images = rng.integers(0, 80, (30, 8, 8, 3)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, 2 * label + 2] += 100
    return replace(given, clean=Is(word="clean", value=ImageSet(images, labels, 3, (0.3,) * 3, (0.25,) * 3)))


def short(**knobs: Any) -> Defense:
    train = {"epochs": 12, "batch_size": 16, "augment": "none"}
    few = {"train": train, "retrain": train, "overlays": 6, "computed": 6}
    return bdtune.defense("strip_filter", **{**few, **knobs})


def test_rows_above_the_threshold_are_flagged_and_ties_are_not() -> None:
    scores = Artefact({"scores": np.array([-1.0, -0.5, -0.2, np.nan])})
    limit = Artefact({"threshold": np.array([-0.5])})
    flagged = LowEntropy().run(CTX, scores=scores, threshold=limit).arrays["flagged"]
    assert flagged.tolist() == [False, False, True, True]  # a score that is not finite is flagged


class Blocks:
    """An image stream in blocks of seven."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.shape = images, images.shape

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.images), 7):
            yield np.arange(len(self.images))[start : start + 7], self.images[start : start + 7]


def test_every_row_is_scored_in_memory_and_in_a_stream(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    data, model = given.fit.value, given.model.value  # type: ignore[attr-defined]
    weights = Artefact(module_arrays(model.build(3, (8, 8, 3))))
    overlays = Overlays(count=5).run(CTX, data=offered(given).clean.value)  # type: ignore[union-attr]
    streamed = replace(data, images=Blocks(data.images))
    assert isinstance(streamed.images, ImageStream)
    both = [
        Entropies(scored=None).run(CTX, data=each, model=model, classifier=weights, overlays=overlays).arrays
        for each in (data, streamed)
    ]
    assert both[0]["ids"].tolist() == both[1]["ids"].tolist() == list(range(60))
    np.testing.assert_allclose(both[0]["entropies"], both[1]["entropies"], atol=1e-5)
    some = Entropies(scored=60).run(CTX, data=data, model=model, classifier=weights, overlays=overlays)
    np.testing.assert_allclose(some.arrays["entropies"], both[0]["entropies"], atol=1e-5)


def test_the_clean_set_sets_the_threshold(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    chain = short(frr=0.2).build(offered(poisoned[0]))
    found = {name: counting.compute(chain[name]).arrays for name in ("calibration", "threshold", "removal")}
    clean = found["calibration"]["scores"]
    assert len(clean) == 24  # without the six overlays
    assert found["threshold"]["threshold"][0] == empirical_threshold(clean, 0.2)
    scores = counting.compute(chain["scores"]).arrays["scores"]
    assert np.array_equal(found["removal"]["flagged"], scores > found["threshold"]["threshold"][0])
    kept = counting.compute(chain["kept"]).arrays["ids"]
    assert np.array_equal(kept, np.flatnonzero(~found["removal"]["flagged"]))


@pytest.mark.parametrize(
    ("knobs", "again"),
    [
        ({"frr": 0.02}, ["threshold", "removal", "kept", "classifier"]),
        ({"overlays": 3}, ["calibration", "scores", "threshold", "removal", "kept", "classifier"]),
        ({"scored": 500}, ["entropies", "calibration", "threshold", "removal", "kept", "classifier"]),
        ({"retrain": {"epochs": 3}}, ["classifier"]),
    ],
)
def test_what_a_setting_leaves_untouched_is_shared(
    poisoned: tuple[DefenseInputs, Truth], knobs: dict[str, Any], again: list[str]
) -> None:
    given = offered(poisoned[0])
    first, second = short().build(given), short(**knobs).build(given)
    assert [name for name in first if first[name].recipe != second[name].recipe] == again


def test_equal_verdicts_train_once_and_the_detector_shares_the_calibration(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given = offered(poisoned[0])
    chains = [short(frr=frr).build(given) for frr in (0.041, 0.05, 0.07)]  # of 24: the last, the last, ...
    plan = make_plan([list(chain.values()) for chain in chains], 0, counting.resolver).stages
    assert (plan["entropies"].unique, plan["overlays"].unique, plan["threshold"].unique) == (2, 1, 3)
    for chain in chains:
        counting.compute(chain["classifier"], counting.note)
    kept = {counting.compute(chain["kept"]).arrays["ids"].tobytes() for chain in chains}
    assert counting.computed.count("entropies") == 2
    assert counting.computed.count("supervised") == len({*kept, np.arange(60).tobytes()})
    train = {"epochs": 12, "batch_size": 16, "augment": "none"}
    detector = bdtune.defense("strip", train=train, overlays=6, computed=6).build(given)
    assert detector["entropies"].recipe == chains[0]["entropies"].recipe


def test_the_control_removes_as_many_at_random(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given = offered(poisoned[0])
    plain, control = short(frr=0.3).build(given), short(frr=0.3, control="random").build(given)
    assert control["suspects"].recipe == plain["removal"].recipe
    found, drawn = (counting.compute(chain["removal"]).arrays["flagged"] for chain in (plain, control))
    assert found.sum() == drawn.sum()


def judged(counting: Counting, chain: dict[str, Node]) -> dict[str, Artefact]:
    names = {*STRIPFilter.evidence, *STRIPFilter.pictured}
    return {name: counting.compute(chain[name]) for name in names}


def test_the_filter_is_judged_by_the_truth_and_drawn(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short(frr=0.2)
    chain = defense.build(offered(given))
    judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
    assert judge is not None
    found = {k.removeprefix("strip_filter/"): v for k, v in counting.compute(judge).info.items()}
    artefacts = judged(counting, chain)
    flagged, scores = artefacts["removal"].arrays["flagged"], artefacts["scores"].arrays["scores"]
    assert found["tpr"] == np.mean(flagged[truth.is_poison])
    assert found["fpr"] == np.mean(flagged[~truth.is_poison])
    assert found["entropy_poison"] == pytest.approx(-scores[truth.is_poison].mean())
    assert found["boundary"] == -artefacts["threshold"].arrays["threshold"][0]
    picture = report.figure(artefacts, truth, 6)
    titles = [ax.get_title() for ax in picture.axes]
    assert titles == ["training rows", "their ROC curve", "spread of clean entropies"]


def test_clean_images_are_asked_for() -> None:
    _, problems = parse_trial({"dataset": "digits", "attack": "badnets", "defense": "strip_filter"})
    assert [(problem.path, problem.got) for problem in problems] == [("clean", "none")]
    assert "clean: 0.05" in problems[0].hint


def test_its_rate_is_that_of_filters_and_the_detectors_stays() -> None:
    assert (STRIPFilter().frr, STRIPFilter().boundary) == (0.1, "quantile")
    assert (bdtune.defense("strip").frr, bdtune.defense("strip").boundary) == (0.01, "normal")


@pytest.mark.parametrize("name", STRIPFilter.presets)
def test_each_preset_is_a_setting(name: str) -> None:
    assert bdtune.defense("strip_filter", **STRIPFilter.presets[name]).space == "normalised"

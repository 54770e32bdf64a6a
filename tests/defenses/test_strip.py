from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import bdtune
from bdtune.config.load import load_trial
from bdtune.defending.blending import Blend, Entropies, Overlays, Scores, Threshold, entropy_bits
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import ConfigError, UserError
from bdtune.models.resnet_s import ResNetS
from bdtune.plugins.data import ImageSet
from bdtune.training.predict import trained_network
from bdtune.training.weights import module_arrays
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node
    from bdtune.plugins.defense import DefenseInputs

CTX = Context(3, CPU)
MODEL = ResNetS(stem_width=4)


def images(count: int, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)
    return ImageSet(pixels, np.full(count, -1), 3, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def weights() -> Artefact:
    torch.manual_seed(0)
    network = MODEL.build(3, (8, 8, 3))
    torch.nn.init.normal_(network.head.weight, std=3.0)
    return Artefact(module_arrays(network))


def entropies_of(data: ImageSet, overlays: np.ndarray, **knobs: object) -> Artefact:
    stage = Entropies(**{"scored": 100, **knobs})
    drawn = Artefact({"images": overlays})
    return stage.run(CTX, data=data, model=MODEL, classifier=weights(), overlays=drawn)


def slow_entropy(data: ImageSet, image: np.ndarray, overlay: np.ndarray, blend: Blend) -> float:
    """The card's equations for one input and one overlay."""
    mixed = blend.input_weight * image / 255 + blend.overlay_weight * overlay / 255
    if blend.clip:
        mixed = np.minimum(np.maximum(mixed, 0), 1)
    seen = (mixed - np.array(data.mean)) / np.array(data.std)
    if blend.space == "normalised":
        inputs = [(each / 255 - np.array(data.mean)) / np.array(data.std) for each in (image, overlay)]
        seen = blend.input_weight * inputs[0] + blend.overlay_weight * inputs[1]
    network = trained_network(MODEL, data, weights(), CPU)
    with torch.inference_mode():
        logits = network(torch.from_numpy(seen).permute(2, 0, 1)[None].float())[0].numpy()
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return float(-sum(each * math.log2(each) for each in p if each > 0))


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"overlay_weight": 0.5},
        {"input_weight": 0.5, "overlay_weight": 0.5},
        {"clip": False},
        {"space": "normalised"},
        {"space": "normalised", "overlay_weight": 0.5},
    ],
)
def test_entropies_equal_the_equations(knobs: dict[str, float]) -> None:
    data, overlays = images(5), images(4, seed=1).images
    assert isinstance(overlays, np.ndarray)
    assert isinstance(data.images, np.ndarray)
    found = entropies_of(data, overlays, **knobs)
    slow = [[slow_entropy(data, image, over, Blend(**knobs)) for over in overlays] for image in data.images]
    np.testing.assert_allclose(found.arrays["entropies"], slow, rtol=2e-4, atol=2e-5)
    assert found.arrays["ids"].tolist() == [0, 1, 2, 3, 4]


def test_entropies_lie_between_nothing_and_all_bits() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [40.0, 0.0, 0.0, 0.0], [200.0, 0.0, 0.0, 0.0]])
    even, sure, certain = entropy_bits(logits).tolist()
    assert even == pytest.approx(2.0)
    assert 0 < sure < 1e-14
    assert certain == pytest.approx(0.0, abs=1e-60)


def test_equal_counts_of_inputs_are_paired_whatever_they_show() -> None:
    overlays = images(2, seed=1).images
    first, second = (entropies_of(images(30, seed), overlays, scored=7) for seed in (0, 5))  # type: ignore[arg-type]
    assert first.arrays["ids"].tolist() == second.arrays["ids"].tolist()
    assert len(first.arrays["ids"]) == 7


def test_overlays_and_calibration_images_are_disjoint() -> None:
    data = images(20)
    drawn = Overlays(count=8).run(CTX, data=data).arrays
    assert isinstance(data.images, np.ndarray)
    places = [int(np.flatnonzero((data.images == image).all((1, 2, 3)))[0]) for image in drawn["images"]]
    assert len(set(places)) == 8
    assert sorted(places + drawn["rows"].tolist()) == list(range(20))
    assert places != sorted(places)  # fewer overlays are a random part of them
    more = Overlays(count=8).run(Context(4, CPU), data=data).arrays["rows"]
    assert more.tolist() != drawn["rows"].tolist()


def test_too_few_clean_images_are_an_error() -> None:
    with pytest.raises(UserError, match="expected at least 10 images that are known to be clean, got 9"):
        Overlays(count=8).run(CTX, data=images(9))


@pytest.mark.parametrize("defense", ["strip", "strip_filter"])
def test_a_clean_set_that_is_too_small_is_reported_before_anything_runs(defense: str) -> None:
    words = ["dataset=digits", f"defense={defense}", "attack=badnets", "clean=10 per class"]
    with pytest.raises(ConfigError, match=r"clean: expected at least 102 images .* got 100"):
        load_trial(None, words)
    load_trial(None, [*words, "defense.overlays=98", "defense.computed=98"])


def scored(values: np.ndarray, overlays: int = 2) -> Artefact:
    arrays = {"ids": np.arange(len(values)), "entropies": values, "predicted": np.zeros(len(values), int)}
    return Scores(overlays=overlays).run(CTX, entropies=Artefact(arrays))


def test_a_score_is_the_mean_of_the_first_overlays() -> None:
    values = np.array([[1.0, 2.0, 30.0], [0.0, 0.5, 30.0]], np.float32)
    assert scored(values).arrays["scores"].tolist() == [-1.5, -0.25]
    assert scored(values, 1).arrays["scores"].tolist() == [-1.0, 0.0]


def test_the_normal_boundary_is_the_papers() -> None:
    entropies = np.random.default_rng(0).normal(1.1, 0.3, (500, 1)).astype(np.float32)
    scores = scored(entropies, 1)
    mean, std = float(entropies.mean(dtype=float)), float(entropies.std(dtype=float))
    found = Threshold(frr=0.01).run(CTX, scores=scores)
    assert -found.arrays["threshold"][0] == pytest.approx(mean - 2.3263479 * std, rel=1e-5)
    assert not found.info["fell_back"]


def test_a_boundary_where_no_entropy_is_gives_way_to_the_quantile() -> None:
    entropies = np.random.default_rng(0).exponential(0.1, (500, 1)).astype(np.float32)
    scores = scored(entropies, 1)
    fallen, quantile = (
        Threshold(frr=0.01, boundary=each).run(CTX, scores=scores) for each in ("normal", "quantile")
    )  # type: ignore[arg-type]
    assert fallen.info["fell_back"]
    assert not quantile.info["fell_back"]
    assert fallen.arrays["threshold"] == quantile.arrays["threshold"]
    rejected = (scores.arrays["scores"] > quantile.arrays["threshold"]).mean()
    assert 0 < rejected <= 0.01


def test_too_few_calibration_images_for_a_quantile_reject_nothing() -> None:
    scores = scored(np.ones((98, 1), np.float32), 1)
    assert Threshold(frr=0.01, boundary="quantile").run(CTX, scores=scores).arrays["threshold"] == np.inf


def test_more_overlays_than_are_computed_are_an_error() -> None:
    with pytest.raises(ValidationError, match="overlays must be at most computed, got 200 and 100"):
        bdtune.defense("strip", overlays=200)


def chain(given: DefenseInputs, **knobs: object) -> Mapping[str, Node]:
    clean = Is(word="clean", value=images(30))
    from dataclasses import replace

    return bdtune.defense("strip", **knobs).build(replace(given, clean=clean))


@pytest.mark.parametrize(
    ("knobs", "again"),
    [
        ({"frr": 0.02}, ["threshold"]),
        ({"boundary": "quantile"}, ["threshold"]),
        ({"overlays": 10}, ["scores", "threshold"]),
        ({"clip": False}, ["entropies", "scores", "threshold"]),
        ({"scored": 500}, ["entropies", "scores", "threshold"]),
        ({"computed": 120}, ["overlays", "entropies", "scores", "threshold"]),
    ],
)
def test_what_a_setting_leaves_untouched_is_shared(poisoned, knobs, again) -> None:
    given, _ = poisoned
    first, second = chain(given), chain(given, **knobs)
    assert [name for name in first if first[name].recipe != second[name].recipe] == again

"""A-ABL's stages: equations against slow plain versions, and the split's properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

import bdtune
from bdtune.defending.isolation import symmetric_cross_entropy
from bdtune.defenses.aabl.losses import IFGSM, AdversarialLosses, AugmentedLosses, Naive
from bdtune.defenses.aabl.split import Scores, Threshold, VulnerableSplit, highest, otsu
from bdtune.engine.key import derive_seed, digest_of
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import ImageSet, LabelSet
from bdtune.training.pgd import pixel_augmentation
from bdtune.training.weights import new_network
from tests.doubles import CPU

CTX = Context(seed=1, numerics=CPU)


# Scores


def slow_sce(logits: np.ndarray, label: int, a: float, b: float, clip: float) -> float:
    """Symmetric cross-entropy as its paper writes it, over all classes."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    forward = -np.log(p[label])
    q = [1.0 if k == label else clip for k in range(len(p))]
    return a * forward + b * -sum(p[k] * np.log(q[k]) for k in range(len(p)))


def test_sce_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 4 * rng.standard_normal((30, 7)), rng.integers(0, 7, 30)
    losses = cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none").numpy()
    expected = [slow_sce(row, label, 0.1, 1.0, 1e-4) for row, label in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(symmetric_cross_entropy(losses, 0.1, 1.0, 1e-4), expected, rtol=1e-9)


def test_sce_ranks_as_ce_down_to_the_smallest_losses() -> None:
    losses = np.concatenate([np.geomspace(1e-300, 1e-9, 50), np.linspace(1e-6, 60, 500)])
    scores = symmetric_cross_entropy(losses, 0.1, 1.0, 1e-4)
    assert (np.diff(scores) > 0).all()
    assert scores[0] >= 0


# Threshold


def slow_otsu(values: np.ndarray, bins: int) -> float:
    """Otsu's rule, one candidate at a time, each value at its bin's middle."""
    low, high = values.min(), values.max()
    width = (high - low) / bins
    number = np.minimum(((values - low) / width).astype(int), bins - 1)
    middles = low + (number + 0.5) * width
    best, chosen = -1.0, 0
    for border in range(bins - 1):
        lower, upper = middles[number <= border], middles[number > border]
        if len(lower) and len(upper):
            between = len(lower) * len(upper) * (lower.mean() - upper.mean()) ** 2
            if between > best * (1 + 1e-12):
                best, chosen = between, border
    return low + (chosen + 1) * width


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bins", [7, 64])
def test_otsu_is_the_slow_one(seed: int, bins: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(1, 0.7, 120), rng.normal(6, 2.0, 40 * (seed + 1))])
    assert otsu(values, bins)[0] == pytest.approx(slow_otsu(values, bins))


@pytest.mark.parametrize("seed", range(3))
def test_exact_otsu_leaves_the_least_variance_within(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.concatenate([rng.normal(0, 1, 60), rng.normal(4, 1, 30), [2.0, 2.0, 2.0]])

    def within(t: float) -> float:
        lower, upper = values[values <= t], values[values > t]
        return len(lower) * lower.var() + len(upper) * upper.var()

    candidates = np.unique(values)[:-1]
    t, separability = otsu(values, None)
    assert t == candidates[np.argmin([within(t) for t in candidates])]
    assert separability == pytest.approx(1 - within(t) / (len(values) * values.var()))
    assert otsu(values, 4096)[0] == pytest.approx(t, abs=0.05 * np.ptp(values))


@pytest.mark.parametrize("bins", [None, 2, 256])
def test_otsu_at_its_ends(bins: int | None) -> None:
    assert otsu(np.array([0.0, 0.0, 1.0]), bins)[1] == pytest.approx(1.0)
    t, _ = otsu(np.array([0.0, 0.0, 1.0]), bins)
    assert 0 <= t < 1
    assert otsu(np.full(5, 3.0), bins) == (3.0 if bins is None else pytest.approx(3.0, abs=1), 0.0)
    assert otsu(np.zeros(0), bins)[1] == 0.0


def test_equal_scores_are_one_class_that_is_left_out() -> None:
    values = np.full(5, 3.0)
    assert not (values > otsu(values, 256)[0]).any()


# VulnerableSplit


def split(
    scores: Any, labels: Any = None, threshold: float = 0.5, predictions: Any = None, **knobs: Any
) -> list[int]:
    scores = np.asarray(scores, np.float64)
    labels = np.zeros(len(scores), np.int64) if labels is None else np.asarray(labels)
    knobs = {"rule": "otsu", "clamp": None, "keep": 0.5, **knobs}
    inputs = {
        "scores": Artefact({"scores": scores}),
        "losses": Artefact({"predictions": labels if predictions is None else np.asarray(predictions)}),
        "threshold": Artefact({"threshold": np.array([threshold])}),
        "data": LabelSet(labels, 3),
    }
    result = VulnerableSplit(**knobs).run(CTX, **inputs)
    ids = result.arrays["ids"]
    assert (np.diff(ids) > 0).all()
    np.testing.assert_array_equal(result.arrays["labels"], labels[ids])
    return ids.tolist()


def test_scores_above_the_threshold_are_kept_and_ties_left_out() -> None:
    assert split([0.2, 0.5, 0.6, 0.9]) == [2, 3]


@pytest.mark.parametrize(
    ("threshold", "clamp", "kept"),
    [
        (-1.0, (0.1, 0.9), list(range(1, 10))),  # all above: the lowest tenth goes
        (99.0, (0.1, 0.9), [9]),  # none above: the highest tenth stays
        (99.0, None, []),
        (-1.0, None, list(range(10))),
        (4.5, (0.1, 0.9), [5, 6, 7, 8, 9]),
        (-1.0, (0.0, 0.3), [7, 8, 9]),
    ],
)
def test_the_clamp_bounds_what_is_kept(threshold: float, clamp: Any, kept: list[int]) -> None:
    assert split(np.arange(10), threshold=threshold, clamp=clamp) == kept


def test_equal_scores_are_taken_by_id() -> None:
    assert split([1, 1, 1, 1], rule="fixed", keep=0.5) == [0, 1]
    assert highest(np.array([0.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [False, True, True, True, False]


def test_not_flipped_leaves_out_what_is_predicted_as_labelled() -> None:
    labels, predictions = [0, 1, 2, 0], [0, 2, 2, 1]
    assert split([1, 1, 1, 1], labels, predictions=predictions, rule="not_flipped") == [1, 3]


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.55, 1.0])
def test_ce_and_sce_keep_the_same_under_a_fixed_share(keep: float) -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.gamma(0.3, 2, 200), rng.gamma(1, 1e-6, 200)])
    inputs = {"losses": Artefact({"losses": losses, "clean_losses": losses})}
    kept = []
    for score in ("sce", "ce"):
        scores = Scores(score=score, a=0.1, b=1.0, clip=1e-4).run(CTX, **inputs).arrays["scores"]
        kept.append(split(scores, rule="fixed", keep=keep))
    assert kept[0] == kept[1]
    assert len(kept[0]) == int(keep * 400 + 0.5)


def test_poison_that_withstands_is_split_off() -> None:
    """One in ten samples keeps its tiny loss; the others' losses are spread widely."""
    rng = np.random.default_rng(0)
    poison = np.arange(500) % 10 == 0
    losses = np.where(poison, rng.gamma(1, 1e-4, 500), rng.gamma(4, 1.5, 500))
    inputs = {"losses": Artefact({"losses": losses, "clean_losses": losses})}
    scores = Scores(score="sce", a=0.1, b=1.0, clip=1e-4).run(CTX, **inputs)
    found = Threshold(bins=256).run(CTX, scores=scores).arrays
    kept = split(scores.arrays["scores"], threshold=found["threshold"][0], clamp=(0.1, 0.9))
    assert not poison[kept].any()
    assert len(kept) > 350
    assert found["separability"][0] > 0.5


# Losses


@pytest.fixture
def seen() -> tuple[ImageSet, Any, Artefact]:
    """Images of three classes, a model, and a naive classifier of theirs."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 40)
    images = rng.integers(0, 80, (40, 16, 16, 3)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, 5 * label : 5 * label + 5] += 40
    data = ImageSet(images, labels, 3, (0.3, 0.25, 0.2), (0.2, 0.2, 0.25))
    model = bdtune.model("resnet_s", stem_width=4)
    everything = Artefact({"ids": np.arange(40), "labels": labels})
    naive = Naive(epochs=3, batch_size=8, lr=0.01, augment="none")
    return data, model, naive.run(CTX, data=data, subset=everything, model=model)


@pytest.mark.slow
def test_adversarial_losses_are_those_of_iterated_fgsm(seen: tuple[ImageSet, Any, Artefact]) -> None:
    data, model, naive = seen
    knobs = IFGSM(eps=6 / 255, step=3 / 255, steps=3)
    result = AdversarialLosses(pgd=knobs).run(CTX, data=data, model=model, classifier=naive).arrays
    network = new_network(model, data, 0, CPU, naive).eval()
    mean, std = (torch.tensor(each)[:, None, None] for each in (data.mean, data.std))
    pixels = torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255
    expected, clean = [], []
    for image, label in zip(pixels, torch.from_numpy(data.labels), strict=True):
        x = image
        for _ in range(3):
            x = x.detach().requires_grad_()
            cross_entropy(network(((x - mean) / std)[None]), label[None]).backward()
            x = x.detach() + knobs.step * x.grad.sign()
            x = x.clamp(image - knobs.eps, image + knobs.eps).clamp(0, 1)
        for found, each in ((expected, x), (clean, image)):
            logits = network(((each - mean) / std)[None]).double()
            found.append(cross_entropy(logits, label[None]).item())
    np.testing.assert_allclose(result["clean_losses"], clean, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(result["losses"], expected, rtol=0.02, atol=1e-4)
    assert np.mean(result["losses"] > result["clean_losses"]) > 0.9
    assert not result["unmoved"].any()
    assert {name: value.dtype.kind for name, value in result.items()} == {
        "losses": "f",
        "clean_losses": "f",
        "predictions": "i",
        "clean_predictions": "i",
        "unmoved": "b",
    }


def test_losses_are_float32_whatever_the_precision(seen: tuple[ImageSet, Any, Artefact]) -> None:
    data, model, naive = seen
    inputs = {"data": data, "model": model, "classifier": naive}
    digests = []
    for precision in ("fp32", "bf16"):
        ctx = Context(seed=1, numerics=CPU.model_copy(update={"precision": precision}))
        digests.append(digest_of(AdversarialLosses().run(ctx, **inputs).arrays, 0))
    assert digests[0] == digests[1]


def test_without_a_random_start_the_seed_changes_nothing(seen: tuple[ImageSet, Any, Artefact]) -> None:
    data, model, naive = seen
    inputs = {"data": data, "model": model, "classifier": naive}
    for knobs, equal in ((IFGSM(), True), (IFGSM(random_start=True), False)):
        one, other = (
            digest_of(AdversarialLosses(pgd=knobs).run(Context(seed=seed, numerics=CPU), **inputs).arrays, 0)
            for seed in (1, 2)
        )
        assert (one == other) is equal


def test_samples_without_a_gradient_are_told(seen: tuple[ImageSet, Any, Artefact]) -> None:
    data, model, naive = seen
    flat = {**naive.arrays, "model.head.weight": np.zeros_like(naive.arrays["model.head.weight"])}
    inputs = {"data": data, "model": model, "classifier": Artefact(flat)}
    result = AdversarialLosses().run(CTX, **inputs).arrays
    assert result["unmoved"].all()
    np.testing.assert_array_equal(result["losses"], result["clean_losses"])


@pytest.mark.parametrize("policy", ["randaugment", "autoaugment", "augmix"])
def test_augmented_losses_depend_on_seed_and_sample_alone(
    seen: tuple[ImageSet, Any, Artefact], policy: Any
) -> None:
    data, model, naive = seen
    stage = AugmentedLosses(policy=policy)

    def losses(data: ImageSet, seed: int = 1) -> np.ndarray:
        inputs = {"data": data, "model": model, "classifier": naive}
        state = torch.get_rng_state()
        found = stage.run(Context(seed=seed, numerics=CPU), **inputs).arrays
        assert torch.equal(state, torch.get_rng_state())
        assert (found["losses"] != found["clean_losses"]).any()
        return found["losses"]

    assert "unmoved" not in stage.run(CTX, data=data, model=model, classifier=naive).arrays
    whole = losses(data)
    torch.manual_seed(9)
    np.testing.assert_array_equal(losses(data), whole)
    assert (losses(data, seed=2) != whole).any()
    part = replace(data, images=data.images[:5], labels=data.labels[:5])
    np.testing.assert_allclose(losses(part), whole[:5], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "augment"),
    [
        ("randaugment", v2.RandAugment()),
        ("autoaugment", v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)),
        ("augmix", v2.AugMix()),
    ],
)
def test_augmentation_is_torchvisions(
    seen: tuple[ImageSet, Any, Artefact], policy: Any, augment: torch.nn.Module
) -> None:
    data, *_ = seen
    ((ids, pixels, changed),) = AugmentedLosses(policy=policy)._batches(data, CTX)
    assert ids.tolist() == list(range(40))
    assert torch.equal(pixels, pixel_augmentation("none", data)(torch.from_numpy(data.images)))
    with torch.random.fork_rng(devices=[]):
        for row in range(40):
            torch.manual_seed(derive_seed(CTX.seed, "policy", row))
            expected = augment(torch.from_numpy(data.images[row]).permute(2, 0, 1))
            torch.testing.assert_close(changed[row], expected / 255)

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.defenses.neural_cleanse import NeuralCleanse, report
from bdtune.defenses.neural_cleanse import inverter as module
from bdtune.defenses.neural_cleanse.costs import Costs
from bdtune.defenses.neural_cleanse.inversion import Inversion
from bdtune.defenses.neural_cleanse.inverter import Inverter, free_start
from bdtune.defenses.neural_cleanse.outliers import (
    Known,
    Outliers,
    Patch,
    Selected,
    anomaly,
    clean_indices,
)
from bdtune.defenses.neural_cleanse.repair import Activations, Left, Prune, Unlearn, stamp
from bdtune.engine.key import digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import ImageSet, TriggerExamples, Truth
from bdtune.plugins.defense import DefenseInputs, Diagnose, diagnosis
from bdtune.plugins.model import Model
from bdtune.plugins.network import Network
from bdtune.training.batches import DeviceSet
from bdtune.training.session import generator
from bdtune.training.weights import module_arrays, new_network
from bdtune.trials.graph import trial_graph
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from bdtune.plugins.defense import Defense
    from tests.defenses.conftest import Counting

SEED, CLASSES = 7, 5
CTX = Context(seed=SEED, numerics=CPU)
REGIONS = [1, 10, 11, 13, 15]
"""Pixels that make an image of each class, of the 64 of a row of 8x8; class 0 has a backdoor: one pixel."""


class Regions(Model):
    """A classifier by hand: the logit of a class is the mean brightness of its own pixels."""

    def build(self, num_classes: int, image_shape: Any) -> Network:
        class Means(Network):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(len(REGIONS), num_classes)
                with torch.no_grad():
                    self.head.weight.copy_(10 * torch.eye(num_classes, len(REGIONS)))
                    self.head.bias.zero_()
                of = np.repeat(np.arange(len(REGIONS)), REGIONS)
                weights = np.zeros((64, len(REGIONS)), np.float32)
                weights[np.arange(len(of)), of] = 1 / np.array(REGIONS)[of]
                self.register_buffer("pixels", torch.from_numpy(weights))

            def features(self, images_NCHW: torch.Tensor) -> torch.Tensor:
                return images_NCHW.mean(1).flatten(1) @ self.pixels

        return Means()


def region_images() -> ImageSet:
    """Fifty noisy images, ten of each class; class 0 is known by its one pixel."""
    rng = np.random.default_rng(1)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), 10))
    images = rng.integers(20, 60, (50, 64, 3)).astype(np.uint8)
    starts = np.cumsum([0, *REGIONS])
    for image, label in zip(images, labels, strict=True):
        image[starts[label] : starts[label + 1]] += 150
    return ImageSet(images.reshape(50, 8, 8, 3), labels, CLASSES, (0.5,) * 3, (0.25,) * 3)


CLEAN = region_images()


@pytest.fixture(scope="module")
def inputs() -> dict[str, Any]:
    classifier = Artefact(module_arrays(Regions().build(CLASSES, (8, 8, 3))))
    return {"data": CLEAN, "model": Regions(), "classifier": classifier}


@pytest.fixture(scope="module")
def inverted(inputs: dict[str, Any]) -> Artefact:
    return Inversion(epochs=120, batch_size=16, patience=3, stop_patience=10).run(CTX, **inputs)


# The cost schedule


class PlainCost:
    """The released code's schedule for one class, line by line."""

    def __init__(self, knobs: Inversion) -> None:
        self.knobs = knobs
        self.cost = 0.0 if knobs.start_cost == "zero" else knobs.initial_cost
        self.to_set = self.up = self.down = self.stale = 0
        self.raised = self.lowered = False
        self.best = self.compared = math.inf

    def step(self, success: float, norm: float, works: bool) -> tuple[bool, bool]:
        """Return whether the trigger is kept, and whether the class stops."""
        knobs, hit = self.knobs, success >= self.knobs.success_threshold
        kept = hit and norm < self.best and works
        if kept:
            self.best = norm
        if knobs.early_stop:
            if self.best < math.inf:
                self.stale = self.stale + 1 if self.best >= knobs.stop_threshold * self.compared else 0
            self.compared = min(self.best, self.compared)
            if self.raised and self.lowered and self.stale >= knobs.stop_patience:
                return kept, True
        if self.cost == 0 and hit:
            self.to_set += 1
            if self.to_set >= knobs.patience:
                self.cost, self.up, self.down = knobs.initial_cost, 0, 0
                self.raised = self.lowered = False
        else:
            self.to_set = 0
        if hit:
            self.up, self.down = self.up + 1, 0
        else:
            self.up, self.down = 0, self.down + 1
        if self.up >= knobs.patience:
            self.up, self.raised = 0, True
            self.cost *= knobs.cost_multiplier
        elif self.down >= knobs.patience:
            self.down, self.lowered = 0, True
            self.cost /= knobs.cost_multiplier**1.5
        return kept, False


@pytest.mark.parametrize(
    "knobs",
    [
        {"stop_patience": 6},
        {"start_cost": "initial", "patience": 2, "cost_multiplier": 1.5, "stop_patience": 4},
        {"stop_threshold": 0.9, "stop_patience": 8, "patience": 3},
        {"early_stop": False, "patience": 1},
    ],
)
def test_costs_of_all_classes_follow_the_released_code(knobs: Any) -> None:
    rng, stage, count = np.random.default_rng(0), Inversion(success_threshold=0.5, **knobs), 30
    costs, plain, stopped = Costs(stage, count), [PlainCost(stage) for _ in range(count)], [0] * count
    easy = rng.random(count)
    for epoch in range(80):
        runs = np.repeat(rng.random((10, count)), 8, axis=0)[epoch]  # successes come in runs
        success, norm = (runs < easy).astype(float), 20 * rng.random(count)
        works, found_K = rng.random(count) < 0.8, (torch.tensor(success), torch.tensor(norm))
        kept = costs.candidates(*found_K) & torch.tensor(works)
        costs.update(*found_K, kept)
        for place, own in enumerate(plain):
            found = (False, True)
            if not stopped[place]:
                found = own.step(success[place], norm[place], works[place])
                stopped[place] = epoch + 1 if found[1] else 0
            assert (bool(kept[place]), not costs.active[place]) == (found[0], bool(stopped[place]))
    np.testing.assert_allclose(costs.cost, [own.cost for own in plain], rtol=1e-12)
    np.testing.assert_array_equal(costs.reached, [own.best < math.inf for own in plain])
    np.testing.assert_array_equal(costs.epochs, [last or 80 for last in stopped])
    assert stage.early_stop == any(stopped)


def test_the_cost_starts_at_zero_rises_and_falls() -> None:
    costs = Costs(Inversion(patience=2), 1)
    seen = []
    for success in (1, 1, 1, 1, 0, 0, 0, 0):
        one = torch.ones(1, dtype=torch.float64)
        costs.update(success * one, one, torch.tensor([False]))
        seen.append(costs.cost.item())
    assert seen == pytest.approx([0, 1e-3, 2e-3, 2e-3, 2e-3, 2e-3 / 2**1.5, 2e-3 / 2**1.5, 2e-3 / 2**3])


# The inversion


def plain_inversion(knobs: Inversion, data: ImageSet, network: Any, label: int) -> dict[str, Any]:
    """One class, by autograd on pixels in [0, 1] and Adam, as in the equations of the paper."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    start = free_start(knobs.start, data.image_shape, generator(SEED, "start", label))
    free = [value.permute(2, 0, 1).clone().requires_grad_() for value in start]
    adam, cost = torch.optim.Adam(free, lr=knobs.lr, betas=knobs.betas), PlainCost(knobs)
    best = None
    for epoch in range(knobs.epochs):
        hits, seen = 0, 0
        for batch in DeviceSet(data, torch.device("cpu")).shuffled(knobs.batch_size, SEED, epoch):
            kept = batch.images[(batch.labels != label) | (knobs.images == "all")]
            mask, pattern = (torch.tanh(value) / 2 + 0.5 for value in free)
            mixed = (1 - mask) * (kept.permute(0, 3, 1, 2) / 255) + mask * pattern
            logits = network((mixed - mean) / std)
            size = mask.abs().sum() if knobs.norm == "l1" else mask.square().sum().sqrt()
            loss = cross_entropy(logits, torch.full((len(kept),), label)) + cost.cost * size
            adam.zero_grad()
            loss.backward()
            adam.step()
            hits, seen = hits + (logits.argmax(1) == label).sum().item(), seen + len(kept)
        mask, pattern = (torch.tanh(value.detach()) / 2 + 0.5 for value in free)
        norm = mask.sum() if knobs.norm == "l1" else mask.square().sum().sqrt()
        others = data.images_at(np.flatnonzero(data.labels != label))
        mixed = (1 - mask) * (torch.tensor(others).permute(0, 3, 1, 2) / 255) + mask * pattern
        moved = (network((mixed - mean) / std).argmax(1) == label).double().mean().item()
        is_kept, stops = cost.step(hits / seen, norm.item(), moved >= knobs.success_threshold)
        if is_kept or not math.isfinite(cost.best):
            best = mask[0], pattern.permute(1, 2, 0), epoch
        if stops:
            break
    assert best is not None
    return {"mask": best[0], "pattern": best[1], "cost": cost.cost, "epochs": epoch + 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        {"success_threshold": 0.25, "patience": 1},
        {"success_threshold": 0.25, "patience": 1, "images": "all", "norm": "l2", "start_cost": "initial"},
        {"start": "normal", "betas": (0.9, 0.999)},
        {"start": "ones", "success_threshold": 0.0, "patience": 1, "initial_cost": 0.01},
    ],
)
def test_all_classes_at_once_are_each_class_alone(knobs: Any) -> None:
    """Within 1e-3 of a mask and of a pattern after four epochs, whose costs differ from class to class."""
    model = bdtune.model("resnet_s", stem_width=4)
    network = new_network(model, CLEAN, 3, CPU).eval()
    stage = Inversion(epochs=4, batch_size=16, **knobs)
    inputs = {"data": CLEAN, "model": model, "classifier": Artefact(module_arrays(network))}
    found = stage.run(CTX, **inputs).arrays
    network = network.requires_grad_(False).to(memory_format=torch.contiguous_format)
    for label in range(CLASSES):
        alone = plain_inversion(stage, CLEAN, network, label)
        np.testing.assert_allclose(found["mask"][label], alone["mask"], atol=1e-3)
        np.testing.assert_allclose(found["pattern"][label], alone["pattern"], atol=1e-3)
        assert found["cost"][label] == pytest.approx(alone["cost"])
        assert found["norm"][label] == pytest.approx(alone["mask"].sum().item(), rel=1e-3)


@pytest.mark.slow
def test_a_class_stops_when_it_would_alone(inputs: dict[str, Any]) -> None:
    stage = Inversion(epochs=60, batch_size=16, patience=2, stop_patience=4, lr=0.3)
    found = stage.run(CTX, **inputs).arrays
    network = Regions().build(CLASSES, (8, 8, 3)).requires_grad_(False)
    alone = [plain_inversion(stage, CLEAN, network, label) for label in range(CLASSES)]
    epochs = [each["epochs"] for each in alone]
    assert found["epochs"].tolist() == epochs
    assert min(epochs) < max(epochs)
    assert found["trace.norm"].shape == (max(epochs), CLASSES)
    first = int(np.argmin(epochs))
    assert (found["trace.norm"][min(epochs) :, first] == found["trace.norm"][min(epochs) - 1, first]).all()
    for label, each in enumerate(alone):
        np.testing.assert_allclose(found["mask"][label], each["mask"], atol=2e-3)


@pytest.mark.parametrize("pixels", [1, 40 * 64])
def test_passes_of_any_size_give_the_same_triggers(
    monkeypatch: pytest.MonkeyPatch, inputs: dict[str, Any], pixels: int
) -> None:
    stage = Inversion(epochs=5, batch_size=16)
    whole = stage.run(CTX, **inputs).arrays
    monkeypatch.setattr(module, "PIXELS", pixels)
    chunk = Inverter(stage, CTX, **inputs).chunk
    assert chunk == {1: 1, 40 * 64: 2}[pixels]
    parts = stage.run(CTX, **inputs).arrays
    for name in ("mask", "pattern", "norm", "success"):
        np.testing.assert_allclose(parts[name], whole[name], atol=1e-4)


def test_triggers_fitted_in_bf16_are_as_small_and_work(inputs: dict[str, Any], inverted: Artefact) -> None:
    """Norms within 15 % of those of float32; they are judged in float32 either way."""
    stage = Inversion(epochs=120, batch_size=16, patience=3, stop_patience=10)
    ctx = replace(CTX, numerics=CPU.model_copy(update={"precision": "bf16"}))
    found = stage.run(ctx, **inputs).arrays
    assert digest_of(found, {}) != digest_of(inverted.arrays, {})
    assert (found["success"] >= 0.99).all()
    assert found["norm"].argmin() == 0
    np.testing.assert_allclose(found["norm"], inverted.arrays["norm"], rtol=0.15)


def test_the_backdoor_has_the_smallest_trigger_in_its_place(inverted: Artefact) -> None:
    found = inverted.arrays
    assert found["reached"].all()
    assert (found["success"] >= 0.99).all()
    assert found["norm"].argmin() == 0
    assert found["norm"][0] < 2
    assert found["mask"][0].argmax() == 0  # the pixel
    assert found["mask"][0].ravel()[0] == pytest.approx(found["norm"][0], abs=0.5)
    assert found["pattern"][0].reshape(64, 3)[0].min() > 0.8  # is white
    np.testing.assert_allclose(found["norm"], found["mask"].sum((1, 2), dtype=np.float64))


def test_the_classifier_is_not_changed_and_has_no_gradient(inputs: dict[str, Any]) -> None:
    before = digest_of(inputs["classifier"].arrays, {})
    own = Inverter(Inversion(epochs=1, batch_size=16), CTX, **inputs)
    assert isinstance(own.network, nn.Module)
    weights = digest_of(module_arrays(own.network), {})
    own.epoch(0)
    assert not own.network.training
    assert all(weight.grad is None for weight in own.network.parameters())
    assert digest_of(module_arrays(own.network), {}) == weights
    assert digest_of(inputs["classifier"].arrays, {}) == before


def test_images_that_do_not_count_pass_no_network(inputs: dict[str, Any]) -> None:
    passed = []
    for images in ("others", "all"):
        own = Inverter(Inversion(epochs=1, batch_size=50, images=images), CTX, **inputs)
        network, sizes = own.network, []
        own.network = lambda x, network=network, sizes=sizes: (sizes.append(len(x)), network(x))[1]
        own.epoch(0)
        passed.append(sizes[0])
    assert passed == [CLASSES * 40, CLASSES * 50]  # ten images of each class


def test_a_batch_of_nothing_but_the_class_itself_moves_nothing(inputs: dict[str, Any]) -> None:
    rows = np.flatnonzero(CLEAN.labels == 2)
    data = replace(CLEAN, images=CLEAN.images_at(rows), labels=CLEAN.labels[rows])
    own = Inverter(Inversion(epochs=1, batch_size=10), CTX, **{**inputs, "data": data})
    before = {name: value.clone() for name, value in own.free.items()}
    own.epoch(0)
    for name, value in own.free.items():
        assert torch.equal(value[2], before[name][2])
        assert not torch.equal(value[0], before[name][0])


def test_a_class_whose_trigger_never_works_keeps_its_last(inputs: dict[str, Any]) -> None:
    data = replace(CLEAN, num_classes=6)  # no region makes an image of class 5
    arrays = {**module_arrays(Regions().build(6, (8, 8, 3)))}
    arrays["model.head.bias"][5] = -100
    found = Inversion(epochs=3, batch_size=16).run(
        CTX, data=data, model=Regions(), classifier=Artefact(arrays)
    )
    assert not found.arrays["reached"][5]
    assert found.arrays["success"][5] == 0
    assert found.arrays["norm"][5] == pytest.approx(found.arrays["trace.norm"][-1, 5], rel=1e-5)


def test_interrupted_the_inversion_ends_with_the_same_bits(inputs: dict[str, Any], memory: Any) -> None:
    stage = Inversion(epochs=12, batch_size=16, patience=1, stop_patience=2)
    whole = stage.run(CTX, **inputs)
    ctx = replace(CTX, checkpoint=memory(due_after=(5,)))
    steps = stage.steps(ctx, **inputs)
    for _ in range(6):
        next(steps)
    steps.close()
    again = stage.run(ctx, **inputs)
    assert digest_of(again.arrays, {}) == digest_of(whole.arrays, {})
    assert len(again.curve) == len(whole.curve)


# The outlier test


def outliers_of(norms: Any, reached: Any = None, **knobs: Any) -> Artefact:
    norms = np.asarray(norms, np.float64)
    reached = np.ones(len(norms), bool) if reached is None else np.asarray(reached)
    defaults = {
        "threshold": 2.0,
        "false_alarms": None,
        "median": "mean",
        "side": "small",
        "unreached": "leave_out",
    }
    stage = Outliers(**{**defaults, **knobs})
    return stage.run(CTX, inversion=Artefact({"norm": norms, "reached": reached}))


@pytest.mark.parametrize("how", ["mean", "lower"])
@pytest.mark.parametrize("count", [9, 10])
def test_the_index_is_that_of_a_slow_plain_version(how: Any, count: int) -> None:
    norms = np.random.default_rng(count).gamma(4, 10, count)

    def middle(values: list[float]) -> float:
        ranked = sorted(values)
        low, high = ranked[(count - 1) // 2], ranked[count // 2]
        return low if how == "lower" else (low + high) / 2

    center = middle(list(norms))
    deviation = 1.4826 * middle([abs(norm - center) for norm in norms])
    expected = [(center - norm) / deviation for norm in norms]
    np.testing.assert_allclose(anomaly(norms, how)[0], expected)
    if how == "lower":
        assert anomaly(norms, how)[1] == torch.tensor(norms).median().item()


def test_the_released_example_is_flagged() -> None:
    """Median 64.47, deviation 13.24 and a smallest norm of 16.1 make the index that the release prints."""
    near, edge, far = 4, 13.24 / 1.4826, 12
    below, above = [*[-near] * 10, *[-far] * 10], [*[near] * 10, edge, *[far] * 10]
    found = outliers_of([16.1, *(64.47 + away for away in (0, *below, *above))])
    assert found.info["median"] == 64.47
    assert found.info["deviation"] == pytest.approx(13.24)
    assert found.arrays["index"][0] == pytest.approx(3.652, rel=1e-3)
    assert np.flatnonzero(found.arrays["flagged"]).tolist() == [0]


def test_only_small_norms_are_flagged_unless_both_sides_are_asked_for() -> None:
    norms = [1, 48, 49, 50, 51, 52, 99]
    assert np.flatnonzero(outliers_of(norms).arrays["flagged"]).tolist() == [0]
    assert np.flatnonzero(outliers_of(norms, side="both").arrays["flagged"]).tolist() == [0, 6]
    assert not outliers_of(norms, threshold=50.0).arrays["flagged"].any()


def test_classes_whose_trigger_never_worked_are_left_out_or_kept() -> None:
    norms, reached = [1, 48, 49, 50, 51, 52, 2], [True] * 6 + [False]
    out, kept = outliers_of(norms, reached), outliers_of(norms, reached, unreached="keep")
    assert np.isnan(out.arrays["index"][6])
    assert np.flatnonzero(out.arrays["flagged"]).tolist() == [0]
    np.testing.assert_allclose(out.arrays["index"][:6], outliers_of(norms[:6]).arrays["index"])
    assert np.flatnonzero(kept.arrays["flagged"]).tolist() == [0, 6]
    nobody = outliers_of(norms, [True, True] + [False] * 5)
    assert not nobody.arrays["flagged"].any()
    assert np.isnan(nobody.arrays["index"]).all()


def test_equal_norms_have_no_deviation() -> None:
    found = outliers_of([64, 64, 64, 64, 30, 70])
    assert found.arrays["index"].tolist() == [0, 0, 0, 0, math.inf, -math.inf]
    assert np.flatnonzero(found.arrays["flagged"]).tolist() == [4]
    assert found.info["undefined"] == 2


@pytest.mark.parametrize(("classes", "share"), [(10, 0.33), (43, 0.63), (100, 0.88), (200, 0.98)])
def test_false_alarms_grow_with_the_number_of_classes(classes: int, share: float) -> None:
    """The shares that the method's card gives for a threshold of 2."""
    clean = clean_indices(classes, "mean", "small")
    assert np.mean(clean > 2) == pytest.approx(share, abs=0.02)
    if classes == 10:
        assert np.mean(clean_indices(10, "lower", "small") > 2) == pytest.approx(0.38, abs=0.02)
    norms = np.random.default_rng(5).normal(60, 9, (300, classes))
    alarms = [outliers_of(row, false_alarms=0.1).arrays["flagged"].any() for row in norms]
    assert np.mean(alarms) == pytest.approx(0.1, abs=0.05)


def test_chance_says_how_often_a_clean_model_is_as_strange() -> None:
    norms = np.random.default_rng(0).normal(60, 9, 10)
    found = outliers_of(norms)
    clean = clean_indices(10, "mean", "small")
    assert found.info["chance"] == pytest.approx(np.mean(clean >= found.arrays["index"].max()))
    assert outliers_of([1, *norms]).info["chance"] < 0.01


def test_triggers_of_flagged_classes_are_selected() -> None:
    rng = np.random.default_rng(0)
    arrays = {"mask": rng.random((4, 6, 6)), "pattern": rng.random((4, 6, 6, 3)), "reached": np.ones(4, bool)}
    flags = Artefact({"flagged": np.array([False, True, False, True])})
    found = Selected().run(CTX, inversion=Artefact(arrays), outliers=flags).arrays
    assert found["label"].tolist() == [1, 3]
    for name in ("mask", "pattern"):
        np.testing.assert_array_equal(found[name], arrays[name][[1, 3]])


def test_the_known_patch_is_what_badnets_stamps() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    attack = bdtune.attack("badnets", pattern="square", size=6, inset=4, corner="top_left")
    shape = Artefact({"pattern": np.zeros((1, 16, 16, 3))})
    found = Known(patch=Patch(target=2, size=6, inset=4, corner="top_left")).run(CTX, inversion=shape).arrays
    mixed = stamp(images, found["mask"][0], found["pattern"][0])
    np.testing.assert_array_equal(mixed, attack.trigger(images, np.arange(2)))
    assert found["label"].tolist() == [2]


# The repair


def trigger_of(inverted: Artefact, *labels: int) -> Artefact:
    chosen = np.array(labels, np.int64)
    arrays = {name: inverted.arrays[name][chosen] for name in ("mask", "pattern")}
    return Artefact({"label": chosen, **arrays})


def test_a_stamp_mixes_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    images, mask, pattern = (
        rng.integers(0, 256, (2, 3, 4, 3), dtype=np.uint8),
        rng.random((3, 4)),
        rng.random((3, 4, 3)),
    )
    found = stamp(images, mask, pattern)
    for place in np.ndindex(*images.shape):
        _, row, column, channel = place
        weight = mask[row, column]
        value = (1 - weight) * images[place] + weight * 255 * pattern[row, column, channel]
        assert found[place] == math.floor(value + 0.5)


@pytest.mark.parametrize(("share", "count"), [(0.2, 10), (0.5, 25), (0.0, 0), (1.0, 50)])
def test_a_share_of_the_clean_images_is_stamped_and_labels_stay(
    inverted: Artefact, share: float, count: int
) -> None:
    trigger = trigger_of(inverted, 0, 3)
    found = Unlearn(share=share).stamped(CLEAN, trigger, SEED)
    assert isinstance(found.images, np.ndarray)
    assert isinstance(CLEAN.images, np.ndarray)
    changed = np.flatnonzero((found.images != CLEAN.images).any((1, 2, 3)))
    assert len(changed) == count
    assert found.labels is CLEAN.labels
    versions = [stamp(CLEAN.images, *pair) for pair in zip(*list(trigger.arrays.values())[1:], strict=True)]
    which = [[np.array_equal(found.images[i], version[i]) for version in versions] for i in changed]
    assert np.array(which, int).reshape(-1, 2).sum(0).tolist() == [count - count // 2, count // 2]


@pytest.mark.parametrize("stage", [Unlearn(), Prune()])
def test_without_a_flagged_class_the_classifier_stays_as_it_is(
    inputs: dict[str, Any], inverted: Artefact, stage: Any
) -> None:
    nothing, data, model = trigger_of(inverted), CLEAN, Regions()
    if stage.name == "unlearn":
        init = inputs["classifier"]
        found = stage.run(CTX, data=data, model=model, init=init, trigger=nothing)
    else:
        active = Activations().run(CTX, **inputs, trigger=nothing)
        found = stage.run(CTX, classifier=inputs["classifier"], activations=active, trigger=nothing)
    assert digest_of(found.arrays, {}) == digest_of(inputs["classifier"].arrays, {})
    assert found.info["skipped"]


def test_unlearning_takes_the_trigger_away(inputs: dict[str, Any], inverted: Artefact) -> None:
    trigger = trigger_of(inverted, 0)
    before = Left().run(CTX, **inputs, trigger=trigger).arrays["success"]
    own = {"data": CLEAN, "model": Regions(), "init": inputs["classifier"]}
    stage = Unlearn(epochs=10, lr=0.3, share=0.5)
    last = stage.run(CTX, **own, trigger=trigger)
    after = Left().run(CTX, **{**inputs, "classifier": last}, trigger=trigger).arrays["success"]
    control = stage.run(CTX, **own)  # clean images alone
    left = Left().run(CTX, **{**inputs, "classifier": control}, trigger=trigger).arrays["success"]
    assert before[0] == pytest.approx(inverted.arrays["success"][0])
    assert before[0] > 0.95
    assert after[0] < 0.2
    assert left[0] > after[0]


def plain_pruning(stage: Prune, classifier: Artefact, active: Artefact, goals: Any) -> list[int]:
    """The pruned features: one more each time, with all logits computed anew."""
    weight, bias = (classifier.arrays[f"model.head.{name}"] for name in ("weight", "bias"))
    clean, triggered, labels = (active.arrays[name] for name in ("clean", "triggered", "labels"))
    gaps = [max(own[:, j].mean() - clean[:, j].mean() for own in triggered) for j in range(clean.shape[1])]
    order = sorted(range(len(gaps)), key=lambda j: -gaps[j])
    for count in range(int(stage.most * len(gaps)) + 1):
        kept = np.ones(len(gaps))
        kept[order[:count]] = 0
        moved = []
        for goal, own in zip(goals, triggered, strict=True):
            others = labels != goal
            moved.append((((own * kept) @ weight.T + bias).argmax(1)[others] == goal).mean())
        if max(moved) <= stage.goal:
            break
    return order[:count]


@pytest.mark.parametrize(("most", "goal"), [(0.3, 0.01), (0.6, 0.0), (0.0, 0.0), (1.0, 1.0)])
def test_features_are_pruned_until_the_trigger_works_no_more(
    inputs: dict[str, Any], inverted: Artefact, most: float, goal: float
) -> None:
    trigger = trigger_of(inverted, 0, 2)
    active = Activations().run(CTX, **inputs, trigger=trigger)
    assert active.arrays["triggered"].shape == (2, 50, 5)
    stage = Prune(most=most, goal=goal)
    found = stage.run(CTX, classifier=inputs["classifier"], activations=active, trigger=trigger)
    pruned = plain_pruning(stage, inputs["classifier"], active, [0, 2])
    assert found.arrays["pruned"].tolist() == pruned
    weight = inputs["classifier"].arrays["model.head.weight"].copy()
    weight[:, pruned] = 0
    np.testing.assert_array_equal(found.arrays["model.head.weight"], weight)
    success = Left().run(CTX, **{**inputs, "classifier": found}, trigger=trigger).arrays["success"]
    assert success.max() <= goal or len(pruned) == int(most * 5)


# The defense


def offered(given: DefenseInputs) -> DefenseInputs:
    rng = np.random.default_rng(3)
    labels = np.tile([0, 1, 2], 10)
    images = rng.integers(0, 80, (30, 8, 8, 3)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, 2 * label + 2] += 100
    clean = ImageSet(images, labels, 3, (0.3,) * 3, (0.25,) * 3)
    return replace(given, clean=Is(word="clean", value=clean))


def short(**knobs: Any) -> Defense:
    train = {"epochs": 12, "batch_size": 16, "augment": "none"}
    inversion = {"epochs": 15, "batch_size": 16, "patience": 2, "success_threshold": 0.9}
    return bdtune.defense("neural_cleanse", train=train, **{"inversion": inversion, **knobs})


def test_what_a_setting_leaves_untouched_is_shared(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given = offered(poisoned[0])
    settings: list[dict[str, Any]] = [
        *({"threshold": value} for value in (1e-6, 0.5, 1.5, 2.0, 100.0, 1000.0)),
        {"median": "lower"},
        {"side": "both"},
        {"false_alarms": 0.05},
        {"unlearn": {"epochs": 2}},
        {"unlearn": {"share": 0.5}},
        {"trigger": "none"},
        {"oracle_trigger": True, "oracle_patch": {"size": 8}},
        {"repair": "prune"},
        {"repair": "prune", "prune": {"most": 0.1}},
        {"repair": "none"},
        {"repair": "none", "threshold": 1.5},
    ]
    chains = [short(**knobs).build(given) for knobs in settings]
    plan = make_plan([list(chain.values()) for chain in chains], 0, counting.resolver).stages
    unique = {
        name: plan[name].unique for name in ("supervised", "inversion", "outliers", "selected", "activations")
    }
    assert unique == {"supervised": 1, "inversion": 1, "outliers": 9, "selected": 9, "activations": 1}
    for chain in chains:
        counting.compute(chain["classifier"], counting.note)
    assert counting.computed.count("inversion") == counting.computed.count("supervised") == 1
    assert counting.computed.count("activations") <= 1
    # thresholds 100 and 1000 flag nothing, so that they have one repair
    assert chains[4]["classifier"].recipe != chains[5]["classifier"].recipe
    assert counting.resolver.key(chains[4]["classifier"]) == counting.resolver.key(chains[5]["classifier"])
    others = {"inversion": {"epochs": 3}}
    other = short(**others).build(given)
    assert other["undefended"].recipe == chains[0]["undefended"].recipe
    assert other["inversion"].recipe != chains[0]["inversion"].recipe


def test_a_detector_alone_is_the_undefended_model(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given = offered(poisoned[0])
    defense = short(repair="none")
    undefended = bdtune.defense("none", train=defense.baseline_training()).build(given)
    assert defense.build(given)["classifier"].recipe == undefended["classifier"].recipe


@pytest.mark.slow
def test_when_nothing_is_flagged_the_evaluated_weights_are_the_undefended_ones(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    chain = short(threshold=1e6).build(offered(poisoned[0]))
    last, before = (counting.compute(chain[name]).arrays for name in ("classifier", "undefended"))
    assert digest_of(last, {}) == digest_of(before, {})


def test_clean_images_are_asked_for() -> None:
    raw = {"dataset": "digits", "attack": "badnets", "defense": "neural_cleanse"}
    _, problems = parse_trial(raw)
    assert [(problem.path, problem.got) for problem in problems] == [("clean", "none")]
    assert "clean to a share" in problems[0].hint
    assert parse_trial({**raw, "clean": 0.05})[1] == []


@pytest.mark.parametrize(
    ("knobs", "path", "expected"),
    [
        (
            {"oracle_trigger": True, "oracle_patch": {"target": 10}},
            "defense.oracle_patch.target",
            "a class from 0 to 9",
        ),
        ({"oracle_trigger": True, "trigger": "none"}, "defense", "exclude each other"),
        ({"oracle_patch": {"size": 30, "inset": 3}}, "defense.oracle_patch", "32 pixels"),
        ({"inversion": {"cost_multiplier": 1.0}}, "defense.inversion.cost_multiplier", "above 1"),
        ({"false_alarms": 0}, "defense.false_alarms", "above 0"),
        ({"repair": "mend"}, "defense.repair", "unlearn"),
    ],
)
def test_wrong_settings_are_named(knobs: dict[str, Any], path: str, expected: str) -> None:
    raw = {"dataset": "digits", "clean": 0.05, "attack": "badnets"}
    _, problems = parse_trial({**raw, "defense": {"name": "neural_cleanse", **knobs}})
    assert [problem.path for problem in problems] == [path]
    assert expected in str(problems[0])


def judged(inverted: Artefact, target: int | None, **more: Artefact) -> tuple[dict[str, Artefact], Truth]:
    outliers = outliers_of(inverted.arrays["norm"], inverted.arrays["reached"])
    artefacts = {"inversion": inverted, "outliers": outliers, **more}
    return artefacts, Truth(CLEAN.labels, CLEAN.labels, np.zeros(50, np.uint8), target)


def test_the_diagnosis_names_hits_and_false_alarms(inverted: Artefact) -> None:
    left = Artefact({"success": np.array([0.25])})
    hit = report.diagnose(*judged(inverted, 0, left=left))
    assert (hit["detected_target"], hit["false_alarms"], hit["flagged"], hit["detected"]) == (1, 0, 1, 1)
    assert hit["index"] == hit["index_target"] > 2
    assert (hit["reversed_before"], hit["reversed_after"]) == (inverted.arrays["success"][0], 0.25)
    assert hit["norm_target"] == inverted.arrays["norm"].min()
    missed = report.diagnose(*judged(inverted, 3))
    assert (missed["detected_target"], missed["false_alarms"]) == (0, 1)
    assert "reversed_after" not in missed
    nobody = report.diagnose(*judged(inverted, None))
    assert "detected_target" not in nobody
    assert nobody["flagged"] == 1


def examples_of(rows: Any, columns: Any) -> TriggerExamples:
    """Two grey images with a white patch at these places."""
    clean = np.full((2, 8, 8, 3), 100, np.uint8)
    stamped = clean.copy()
    stamped[:, rows, columns] = 255
    return TriggerExamples(clean, stamped)


def test_the_inverted_trigger_is_compared_with_the_attacks_own() -> None:
    patch = examples_of(slice(0, 2), slice(0, 2))
    mask, white = np.zeros((8, 8)), np.ones((8, 8, 3))
    mask[0, :3] = 0.9
    mask[5, 5] = 0.4  # less than half
    found = report.compared(mask, white, patch)
    assert found["iou_target"] == pytest.approx(2 / 5)
    apart = 0.0
    for row, column in np.ndindex(8, 8):
        ours = round((1 - mask[row, column]) * 100 + mask[row, column] * 255)
        theirs = 255 if row < 2 and column < 2 else 100
        apart += abs(ours - theirs) / 255 / 64
    assert found["distance_target"] == pytest.approx(apart, abs=1e-3)
    same = report.compared((patch.stamped[0, ..., 0] == 255).astype(float), white, patch)
    assert same == {"iou_target": 1.0, "distance_target": 0.0}
    assert report.compared(np.zeros((8, 8)), white, patch)["iou_target"] == 0
    assert report.compared(mask, white, examples_of(slice(0), slice(0))) == {}


def test_the_backdoors_pixel_is_found(inverted: Artefact) -> None:
    """The hand-made classifier's backdoor is the first pixel."""
    artefacts, truth = judged(inverted, 0)
    assert "iou_target" not in report.diagnose(artefacts, truth)
    shown = replace(truth, examples=examples_of(0, 0))
    assert report.diagnose(artefacts, shown)["iou_target"] == 1
    missed = replace(shown, target=3)
    assert report.diagnose(artefacts, missed)["iou_target"] < 0.1


def test_only_who_asks_is_shown_the_trigger() -> None:
    raw = {"dataset": "digits", "attack": "badnets", "clean": 0.1}
    for name, asks in (("neural_cleanse", True), ("fine_pruning", False)):
        spec, _ = parse_trial({**raw, "defense": name})
        assert spec is not None
        judge = trial_graph(spec).diagnose
        assert judge is not None
        assert ("examples" in judge.inputs) == asks
    spec, _ = parse_trial({**raw, "attack": None, "defense": "neural_cleanse"})
    assert spec is not None
    judge = trial_graph(spec).diagnose
    assert judge is not None
    assert "examples" not in judge.inputs


def test_the_picture_has_triggers_and_indices(inverted: Artefact) -> None:
    picture = report.figure(*judged(inverted, 0))
    titles = [ax.get_title() for ax in picture.axes]
    assert titles[0].startswith("class 0\nnorm")
    assert len(picture.axes) == 2 * CLASSES + 1
    heights = [bar.get_height() for bar in picture.axes[-1].patches]
    index = judged(inverted, 0)[0]["outliers"].arrays["index"]
    np.testing.assert_allclose(sorted(heights), sorted(index))


@pytest.mark.slow
def test_the_whole_chain_is_judged_by_the_truth(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short()
    judge = diagnosis(Diagnose(defense=defense), defense.build(offered(given)), Is(word="truth", value=truth))
    assert judge is not None
    found = counting.compute(judge).info
    assert 0 <= found["neural_cleanse/detected_target"] <= 1
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", NeuralCleanse.presets)
def test_each_preset_is_a_setting(name: str) -> None:
    defense = bdtune.defense("neural_cleanse", **NeuralCleanse.presets[name])
    assert defense != bdtune.defense("neural_cleanse")

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch

from bdtune.engine.key import derive_seed, digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.training import loop
from bdtune.training.augment import Augmentation
from bdtune.training.joined import joined
from bdtune.training.losses import cross_entropies
from bdtune.training.mixmatch import MixMatch, SemiSupervised
from bdtune.training.predict import predict_logits, trained_network
from bdtune.training.semi import endless, guessed, loss_parts, mixed, sharpen
from bdtune.training.weights import module_arrays, new_network

if TYPE_CHECKING:
    from bdtune.training.semi import SemiFit

FP32 = Numerics(device="cpu", precision="fp32")
CTX = Context(seed=5, numerics=FP32)


class LowestHalf(SemiSupervised):
    """Reads the labels of the half that fits best."""

    name: ClassVar[str] = "test_lowest_half"

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.zeros(len(losses), bool)
        chosen[np.argsort(losses, kind="stable")[: len(losses) // 2]] = True
        return chosen, losses


class Continued(LowestHalf):
    """The same as the first part of a training."""

    name: ClassVar[str] = "test_continued"
    classifier: ClassVar[bool] = False
    goes_on: ClassVar[bool] = True


class Everything(LowestHalf):
    name: ClassVar[str] = "test_everything"

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        return np.ones(len(losses), bool), losses


class FirstHalf(LowestHalf):
    name: ClassVar[str] = "test_first_half"

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(len(losses)) < len(losses) // 2, losses


class Nothing(LowestHalf):
    name: ClassVar[str] = "test_nothing"

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(losses), bool), losses


SHORT: dict[str, Any] = {"epochs": 3, "iterations": 3, "batch_size": 8, "augment": "flip", "ramp": 4}


def digest(artefact: Artefact) -> str:
    return digest_of(artefact.arrays, artefact.info)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape), dtype=torch.float32)


# the equations, one number at a time


def plain_softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in logits)
    return [math.exp(value) / total for value in logits]


@pytest.mark.parametrize("temperature", [0.2, 0.5, 1.0])
def test_guesses_are_the_sharpened_mean_over_views(temperature: float) -> None:
    logits = rows(3 * 4, 5)
    found = guessed(logits, 3, temperature)
    for image in range(4):
        views = [plain_softmax(logits[view * 4 + image].tolist()) for view in range(3)]
        mean = [sum(view[k] for view in views) / 3 for k in range(5)]
        powers = [value ** (1 / temperature) for value in mean]
        assert found[image].tolist() == pytest.approx([value / sum(powers) for value in powers], rel=1e-4)


def test_sharpening_makes_the_likeliest_class_likelier() -> None:
    flat = torch.tensor([0.5, 0.3, 0.2])
    assert sharpen(flat, 1.0).tolist() == pytest.approx(flat.tolist())
    assert sharpen(flat, 0.5)[0] == pytest.approx(0.25 / (0.25 + 0.09 + 0.04))


def test_a_row_is_mixed_with_the_one_that_the_order_names() -> None:
    values, order = rows(4, 3), torch.tensor([2, 0, 3, 1])
    found = mixed(values, order, 0.8)
    for row in range(4):
        expected = 0.8 * values[row] + 0.2 * values[order[row]]
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)
    assert torch.equal(mixed(values, order, 1.0), values)


def test_both_parts_of_the_loss_are_the_formulas() -> None:
    logits, targets = rows(7, 4), rows(7, 4, seed=1).softmax(1)
    loss_x, loss_u = loss_parts(logits, targets, 3)
    entropy, error = 0.0, 0.0
    for row in range(7):
        predicted = plain_softmax(logits[row].tolist())
        for p, q in zip(predicted, targets[row].tolist(), strict=True):
            if row < 3:
                entropy -= q * math.log(p) / 3
            else:
                error += (p - q) ** 2 / (4 * 4)
    assert float(loss_x) == pytest.approx(entropy, rel=1e-5)
    assert float(loss_u) == pytest.approx(error, rel=1e-5)
    assert float(loss_parts(logits[:3], targets[:3], 3)[1]) == 0


# the training, one step at a time


def slow_training(data: Any, model: Any, stage: Any) -> dict[str, np.ndarray]:
    """Train as `LowestHalf` does, with one pass over the batch for everything, in the order of the paper."""
    network = new_network(model, data, CTX.seed, FP32)
    optimizer = torch.optim.Adam(network.parameters(), lr=stage.lr, weight_decay=stage.weight_decay)
    see, kinds = Augmentation.of("flip", data), data.num_classes
    average = {name: value.clone() for name, value in network.state_dict().items()}
    for epoch in range(stage.epochs):
        losses = cross_entropies(predict_logits(network, data, FP32), data.labels)
        order = np.argsort(losses, kind="stable")
        half = len(data) // 2
        pools = [np.sort(order[:half]), np.sort(order[half:])]
        draws = torch.Generator().manual_seed(derive_seed(CTX.seed, "augment", epoch))
        shares = np.random.default_rng(derive_seed(CTX.seed, "mixup", epoch)).beta(
            stage.mixup_alpha, stage.mixup_alpha, stage.iterations
        )
        batches: list[list[np.ndarray]] = []
        for word, pool in zip(("labelled", "unlabelled"), pools, strict=True):
            found: list[np.ndarray] = []
            turn = 0
            while len(found) < stage.iterations:
                seed = derive_seed(derive_seed(CTX.seed, word, epoch), "order", turn)
                mixed_up = pool[torch.randperm(half, generator=torch.Generator().manual_seed(seed)).numpy()]
                full = range(0, half - stage.batch_size + 1, stage.batch_size)
                found += [mixed_up[start : start + stage.batch_size] for start in full]
                turn += 1
            batches.append(found[: stage.iterations])
        network.train()
        for step, (known, unknown) in enumerate(zip(*batches, strict=True)):
            inputs = [see(torch.tensor(data.images[known]), draws)]
            targets = [torch.eye(kinds)[data.labels[known]]]
            twice = np.concatenate([data.images[unknown]] * stage.views)
            views = see(torch.tensor(twice), draws)
            with torch.no_grad():
                guesses = network(views).softmax(1).chunk(stage.views)
            guess = sum(guesses) / stage.views
            guess = guess ** (1 / stage.temperature)
            guess = guess / guess.sum(1, keepdim=True)
            inputs.append(views)
            targets += [guess] * stage.views
            x, q = torch.cat(inputs), torch.cat(targets)
            share = max(shares[step], 1 - shares[step])
            other = torch.randperm(len(x), generator=draws)
            x, q = share * x + (1 - share) * x[other], share * q + (1 - share) * q[other]
            logits = network(x)
            count = len(known)
            weight = stage.lambda_u * min((epoch + step / stage.iterations) / stage.ramp, 1)
            loss = -(q[:count] * logits[:count].log_softmax(1)).sum(1).mean()
            loss = loss + weight * ((logits[count:].softmax(1) - q[count:]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, value in network.state_dict().items():
                blend = stage.ema * average[name] + (1 - stage.ema) * value
                average[name] = blend if value.is_floating_point() else value.clone()
    arrays = module_arrays(network)
    return {
        name: average[name.removeprefix("model.")].numpy() if stage.ema else arrays[name] for name in arrays
    }


@pytest.mark.parametrize("knobs", [{}, {"views": 3, "temperature": 0.8, "weight_decay": 0.1}])
def test_it_is_the_algorithm(make_set: Any, tiny: Any, knobs: dict[str, Any]) -> None:
    data = make_set(40)
    stage = LowestHalf(**{**SHORT, "epochs": 2, "lambda_u": 3.0, "lr": 1e-3, **knobs})
    found = stage.run(CTX, data=data, model=tiny)
    expected = slow_training(data, tiny, stage)
    for name, value in expected.items():
        np.testing.assert_allclose(found.arrays[name], value, rtol=2e-3, atol=2e-4, err_msg=name)


def test_the_average_follows_the_weights(make_set: Any, tiny: Any) -> None:
    data = make_set(40)
    stage = LowestHalf(**{**SHORT, "epochs": 1, "lr": 1e-3, "ema": 0.7})
    found, expected = stage.run(CTX, data=data, model=tiny), slow_training(data, tiny, stage)
    for name, value in expected.items():
        np.testing.assert_allclose(found.arrays[name], value, rtol=2e-3, atol=2e-4, err_msg=name)
    plain = LowestHalf(**{**SHORT, "epochs": 1, "lr": 1e-3}).run(CTX, data=data, model=tiny)
    assert digest(plain) != digest(found)


@pytest.mark.slow
def test_it_learns_from_labels_of_half_the_samples(make_set: Any, tiny: Any) -> None:
    data = make_set(96)
    stage = FirstHalf(**{**SHORT, "epochs": 6, "iterations": 12, "lr": 0.02, "ramp": 6})
    network = trained_network(tiny, data, stage.run(CTX, data=data, model=tiny), FP32)
    predicted = predict_logits(network, data, FP32).argmax(1)
    assert np.mean(predicted == data.labels) > 0.8


def test_labels_of_the_others_are_not_read(make_set: Any, tiny: Any) -> None:
    """With the split fixed, other labels of what is not in it change nothing but the losses."""
    data = make_set(40)
    other = replace(data, labels=np.where(np.arange(40) < 20, data.labels, (data.labels + 1) % 3))
    first, second = (FirstHalf(**SHORT).run(CTX, data=each, model=tiny) for each in (data, other))
    same = [name for name in first.arrays if not name.startswith("pool.scores")]
    for name in same:
        assert np.array_equal(first.arrays[name], second.arrays[name]), name
    assert not np.array_equal(first.arrays["pool.scores"], second.arrays["pool.scores"])


@pytest.mark.parametrize("knobs", [{}, {"ema": 0.9, "score_views": "augmented"}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumes_to_the_same_bits(
    make_set: Any, tiny: Any, memory: Any, knobs: dict[str, Any], precision: Any
) -> None:
    inputs, stage = {"data": make_set(40), "model": tiny}, LowestHalf(**SHORT, **knobs)
    ctx = Context(seed=5, numerics=Numerics(device="cpu", precision=precision))
    whole = stage.run(ctx, **inputs)
    ctx = replace(ctx, checkpoint=memory(due_after=[2]))
    steps = stage.steps(ctx, **inputs)
    next(steps), next(steps)
    steps.close()
    torch.manual_seed(1)
    again = stage.run(ctx, **inputs)
    assert len(again.curve) == 3
    assert digest(again) == digest(whole)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_tick_is_the_end_of_a_shorter_training_to_the_bit(make_set: Any, tiny: Any, ema: float) -> None:
    inputs, stage = {"data": make_set(40), "model": tiny}, Continued(**SHORT, ema=ema)
    ticks = {tick.epoch: tick.artefact() for tick in stage.steps(CTX, **inputs)}
    shorter = stage.at(2)
    assert shorter is not None
    assert digest(ticks[2]) == digest(shorter.run(CTX, **inputs))
    assert LowestHalf(**SHORT).at(2) is None  # a scheduler judges it, and may stop it


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_next_training_goes_on_with_weights_adam_and_ramp(make_set: Any, tiny: Any, ema: float) -> None:
    """With one step an epoch and nothing drawn, 2 + 1 epochs are 3, but for the seed of each stage."""
    knobs = {**SHORT, "iterations": 1, "augment": "none", "mixup_alpha": 0, "batch_size": 40, "ema": ema}
    inputs = {"data": make_set(40), "model": tiny}
    whole = LowestHalf(**knobs).run(CTX, **inputs)
    first = Continued(**{**knobs, "epochs": 2}).run(CTX, **inputs)
    last = LowestHalf(**{**knobs, "epochs": 1}).run(CTX, **inputs, init=first)
    assert last.info == whole.info == {"epochs": 3}
    assert last.curve[-1]["lambda_u"] == whole.curve[-1]["lambda_u"] == pytest.approx(15 * 3 / 4)
    for name in (name for name in whole.arrays if name.startswith("model.")):
        np.testing.assert_allclose(last.arrays[name], whole.arrays[name], rtol=1e-3, atol=1e-5, err_msg=name)
    stripped = Artefact({k: v for k, v in first.arrays.items() if k.startswith("model.")}, first.info)
    fresh = LowestHalf(**{**knobs, "epochs": 1}).run(CTX, **inputs, init=stripped)
    head = "model.head.weight"
    assert not np.allclose(fresh.arrays[head], whole.arrays[head], rtol=1e-3, atol=1e-5)


def test_the_weight_rises_over_the_ramp_and_no_further(make_set: Any, tiny: Any) -> None:
    inputs = {"data": make_set(24), "model": tiny}
    found = LowestHalf(**{**SHORT, "epochs": 3, "iterations": 1, "ramp": 2}).run(CTX, **inputs)
    assert [row["lambda_u"] for row in found.curve] == [7.5, 15.0, 15.0]
    assert LowestHalf(**{**SHORT, "ramp": 0}).run(CTX, **inputs).curve[0]["lambda_u"] == 15.0


def test_every_epoch_says_whose_labels_it_read(make_set: Any, tiny: Any) -> None:
    data = make_set(40)
    found = LowestHalf(**SHORT).run(CTX, data=data, model=tiny)
    labelled, losses = found.arrays["pool.labelled"], found.arrays["pool.scores"]
    assert labelled.shape == (3, 40)
    assert labelled.sum(1).tolist() == [20, 20, 20]
    start = new_network(tiny, data, CTX.seed, FP32).eval()
    first = cross_entropies(predict_logits(start, data, FP32), data.labels)
    np.testing.assert_allclose(losses[0], first, rtol=1e-6)
    assert losses[0][labelled[0]].max() <= losses[0][~labelled[0]].min()
    assert losses[1][labelled[-1]].max() <= losses[1][~labelled[-1]].min()


def test_without_unlabelled_samples_it_is_supervised(make_set: Any, tiny: Any) -> None:
    found = Everything(**SHORT).run(CTX, data=make_set(40), model=tiny)
    assert all(row["loss_u"] == 0 and row["loss"] == pytest.approx(row["loss_x"]) for row in found.curve)


def test_without_labelled_samples_it_ends(make_set: Any, tiny: Any) -> None:
    with pytest.raises(Diverged, match="no sample is labelled in epoch 1"):
        Nothing(**SHORT).run(CTX, data=make_set(40), model=tiny)


def test_clean_images_are_always_labelled(make_set: Any, tiny: Any) -> None:
    clean = make_set(6, seed=1)
    found = Nothing(**SHORT).run(CTX, data=make_set(40), model=tiny, clean=clean)
    assert [row["labelled"] for row in found.curve] == [6, 6, 6]
    assert not found.arrays["pool.labelled"].any()
    other = replace(clean, labels=(clean.labels + 1) % 3)
    again = Nothing(**SHORT).run(CTX, data=make_set(40), model=tiny, clean=other)
    assert digest(again) != digest(found)


def test_a_stream_gives_the_same_pools_and_trains(make_set: Any, tiny: Any, stream: Any) -> None:
    data, clean = make_set(40), make_set(6, seed=1)
    streamed = replace(data, images=stream(data.images))
    found = LowestHalf(**SHORT).run(CTX, data=streamed, model=tiny, clean=clean)
    again = LowestHalf(**SHORT).run(CTX, data=streamed, model=tiny, clean=clean)
    assert digest(found) == digest(again)
    resident = LowestHalf(**SHORT).run(CTX, data=data, model=tiny, clean=clean)
    assert np.array_equal(found.arrays["pool.labelled"][0], resident.arrays["pool.labelled"][0])


def test_two_sets_as_one(make_set: Any, stream: Any) -> None:
    first, second = make_set(20), make_set(5, seed=1)
    both = joined(first, second)
    assert np.array_equal(both.images, np.concatenate([first.images, second.images]))
    assert both.labels.tolist() == [*first.labels, *second.labels]
    read = joined(replace(first, images=stream(first.images)), replace(second, images=stream(second.images)))
    assert read.images.shape == (25, 16, 16, 3)
    for ids, images in read.images.blocks(3):
        assert np.array_equal(images, both.images[ids])
    assert np.array_equal(read.images_at(np.array([1, 19, 20, 24])), both.images[[1, 19, 20, 24]])
    assert joined(first, None) is first


def test_a_pool_smaller_than_a_batch_is_one_batch(make_set: Any) -> None:
    from bdtune.training.batches import DeviceSet

    pool = DeviceSet(make_set(20), torch.device("cpu"), np.arange(5))
    batches = endless(pool, 8, 0)
    for _ in range(3):
        assert sorted(next(batches).rows.tolist()) == [0, 1, 2, 3, 4]


def test_a_loss_that_is_not_finite_ends_it(make_set: Any, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)
    with pytest.raises(Diverged, match=r"not finite|became"):
        LowestHalf(**{**SHORT, "lr": 1e20}).run(CTX, data=make_set(40), model=tiny)


def test_settings_have_the_papers_defaults() -> None:
    found = MixMatch().model_dump()
    shared = {"iterations": 1024, "batch_size": 64, "lr": 2e-3, "views": 2, "lambda_u": 15.0}
    assert found.items() >= {**shared, "temperature": 0.5, "mixup_alpha": 0.75, "ema": 0.0}.items()
    undefended = MixMatch(lr=0.01, augment="crop").undefended(7)
    assert (undefended.optimizer, undefended.lr, undefended.epochs, undefended.augment) == (
        "adam", 0.01, 7, "crop",
    )  # fmt: skip

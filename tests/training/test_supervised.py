from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.training.fit import Fit
from bdtune.training.supervised import Supervised

FP32 = Numerics(device="cpu", precision="fp32")
BF16 = Numerics(device="cpu", precision="bf16")


def train(stage, data, subset, model, ctx=None, **inputs):
    inputs = {"data": data, "subset": subset, "model": model, **inputs}
    return stage.run(ctx or Context(seed=5, numerics=FP32), **inputs)


def digest(artefact):
    return digest_of(artefact.arrays, artefact.info)


@pytest.mark.slow
@pytest.mark.parametrize("numerics", [FP32, BF16])
def test_learns(make_set, everything, tiny, numerics):
    data = make_set(192)
    stage = Supervised(epochs=8, batch_size=16, schedule="cosine", optimizer="adam", lr=0.02, augment="none")
    result = train(stage, data, everything(data), tiny, Context(seed=1, numerics=numerics))
    assert result.curve[-1]["acc"] > 0.9
    assert result.curve[-1]["loss"] < result.curve[0]["loss"] / 2


def test_artefact_holds_float32_weights_and_no_times(make_set, everything, tiny):
    data = make_set(20)
    result = train(Supervised(epochs=2, batch_size=8), data, everything(data), tiny)
    assert result.info == {"epochs": 2, "samples": 20}
    assert [row["epoch"] for row in result.curve] == [1, 2]
    assert set(result.curve[0]) == {"epoch", "loss", "acc", "lr", "seconds"}
    expected = {f"model.{name}" for name in tiny.build(3, (16, 16, 3)).state_dict()}
    assert set(result.arrays) == expected
    floats = [value.dtype for name, value in result.arrays.items() if "num_batches" not in name]
    assert set(floats) == {np.dtype(np.float32)}
    assert all(value.flags.c_contiguous for value in result.arrays.values())


@pytest.mark.parametrize("numerics", [FP32, BF16])
@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop_flip"])
def test_repeats_bit_for_bit_whatever_the_global_generator(make_set, everything, tiny, numerics, augment):
    data = make_set(40)
    stage = Supervised(epochs=2, batch_size=16, augment=augment)

    def once(noise, seed=3):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        result = train(stage, data, everything(data), tiny, Context(seed=seed, numerics=numerics))
        assert torch.equal(before, torch.get_rng_state())
        return digest(result)

    assert once(0) == once(1)
    assert once(0) != once(0, seed=4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 4])
def test_resumes_to_the_same_bits(make_set, everything, tiny, memory, optimizer, killed_after):
    data = make_set(40)
    stage = Supervised(epochs=4, batch_size=16, optimizer=optimizer, lr=0.01)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    whole = train(stage, **inputs)
    slot = memory(due_after=[killed_after])
    ctx = Context(seed=5, numerics=FP32, checkpoint=slot)
    steps = stage.steps(ctx, **inputs)
    for _ in range(killed_after):
        next(steps)
    steps.close()
    later = list(stage.steps(ctx, **inputs))
    assert [tick.epoch for tick in later] == list(range(killed_after + 1, 5))
    resumed = stage.run(ctx, **inputs)
    assert digest(resumed) == digest(whole)
    assert [row["loss"] for row in resumed.curve] == [row["loss"] for row in whole.curve]


def test_ticks_carry_the_result_so_far(make_set, everything, tiny):
    data = make_set(20)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    stage = Supervised(epochs=3, batch_size=8, schedule="constant")
    ticks = stage.steps(Context(seed=5, numerics=FP32), **inputs)
    first = next(ticks)
    assert (first.epoch, first.epochs, set(first.metrics)) == (1, 3, {"loss", "acc", "lr"})
    shorter = stage.model_copy(update={"epochs": 1}).run(Context(seed=5, numerics=FP32), **inputs)
    assert digest(first.artefact()) == digest(shorter)
    assert stage.length() == 3


def test_subset_labels_count_and_other_rows_do_not(make_set, everything, tiny):
    data = make_set(40)
    ids = np.arange(0, 40, 2)
    subset = everything(data, ids)
    images = data.images.copy()
    images[1::2] = 0
    blind = replace(data, images=images, labels=np.where(np.arange(40) % 2, 0, data.labels))
    stage = Supervised(epochs=1, batch_size=8)
    result = train(stage, data, subset, tiny)
    assert result.info["samples"] == 20
    assert digest(train(stage, blind, subset, tiny)) == digest(result)
    relabelled = Artefact({"ids": ids, "labels": (subset.arrays["labels"] + 1) % 3})
    assert digest(train(stage, data, relabelled, tiny)) != digest(result)


def test_streamed_images_train_too(make_set, everything, tiny, stream):
    data = make_set(40)
    streamed = replace(data, images=stream(data.images))
    result = train(Supervised(epochs=2, batch_size=8), streamed, everything(data), tiny)
    assert result.info == {"epochs": 2, "samples": 40}


def test_init_gives_the_first_weights(make_set, everything, tiny):
    data = make_set(20)
    init = train(Supervised(epochs=1, batch_size=8), data, everything(data), tiny)
    still = Supervised(epochs=1, batch_size=8, lr=1e-30, momentum=0, weight_decay=0)
    result = train(still, data, everything(data), tiny, init=init)
    weights = [name for name in init.arrays if "running" not in name and "num_batches" not in name]
    for name in weights:
        np.testing.assert_array_equal(result.arrays[name], init.arrays[name])


def test_an_empty_subset_keeps_init(make_set, everything, tiny):
    data = make_set(20)
    init = train(Supervised(epochs=1, batch_size=8), data, everything(data), tiny)
    empty = everything(data, [])
    result = train(Supervised(epochs=2), data, empty, tiny, init=init)
    assert digest_of(result.arrays, 0) == digest_of(init.arrays, 0)
    assert result.info == {"epochs": 0, "samples": 0, "skipped": True}
    with pytest.raises(Diverged, match="subset is empty"):
        train(Supervised(epochs=2), data, empty, tiny)


def test_a_single_sample_trains(make_set, everything, tiny):
    data = make_set(20)
    result = train(Supervised(epochs=1), data, everything(data, [3]), tiny)
    assert np.isfinite(result.curve[0]["loss"])


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_huge_rate_diverges(make_set, everything, tiny, epochs):
    data = make_set(64)
    with pytest.raises(Diverged, match=r"supervised: .*epoch"):
        train(Supervised(epochs=epochs, batch_size=8, lr=1e9), data, everything(data), tiny)


def test_deterministic_mode_is_put_back(make_set, everything, tiny):
    data = make_set(20)
    torch.use_deterministic_algorithms(False)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    steps = Supervised(epochs=2, batch_size=8).steps(Context(numerics=FP32), **inputs)
    next(steps)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_defenses_may_weigh_samples(make_set, everything, tiny):
    class Weighted(Supervised):
        def training(self, ctx, *, data, subset, model, weights):
            def loss(logits, batch):
                weight = torch.from_numpy(weights.arrays["w"])[batch.rows]
                return (
                    weight * torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
                ).mean()

            fit = Fit(self, ctx, data, subset, model)
            fit.loss = loss
            return fit.training()

    data = make_set(20)
    none = Artefact({"w": np.zeros(20, np.float32)})
    one, two = (
        train(
            Weighted(epochs=epochs, batch_size=8, weight_decay=0), data, everything(data), tiny, weights=none
        )
        for epochs in (1, 2)
    )
    assert two.curve[-1]["loss"] == 0
    np.testing.assert_array_equal(one.arrays["model.head.weight"], two.arrays["model.head.weight"])


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 1}, {"lr": 0}, {"milestones": (1.5,)}, {"augment": "simclr"}]
)
def test_knobs_are_checked(wrong):
    with pytest.raises(ValidationError):
        Supervised(**wrong)


def test_nesterovs_momentum_is_torchs_and_a_recipe_without_it_keeps_its_key(tiny):
    ours, theirs = (tiny.build(3, (16, 16, 3)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    stage = Supervised(lr=0.05, nesterov=True)
    rules = (
        stage.new_optimizer(ours),
        torch.optim.SGD(theirs.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True),
    )
    draws = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.rand(4, 3, 16, 16, generator=draws)
        for network, rule in zip((ours, theirs), rules, strict=True):
            rule.zero_grad()
            network(images).square().sum().backward()
            rule.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for plain in ({"optimizer": "adam"}, {"momentum": 0.0}):
        assert not Supervised(nesterov=True, **plain).looks_ahead


@pytest.mark.parametrize(
    ("recipe", "idle"),
    [
        ({"optimizer": "adam"}, {"momentum": 0.5, "nesterov": True}),
        ({"optimizer": "adamw"}, {"momentum": 0.0}),
        ({"schedule": "cosine"}, {"milestones": (0.1,), "gamma": 0.5}),
        ({"schedule": "constant"}, {"milestones": ()}),
    ],
)
def test_a_knob_that_a_recipe_does_not_look_at_makes_no_other_training(
    recipe, idle, make_set, everything, tiny
):
    data, short = make_set(16), {"epochs": 2, "batch_size": 8, "lr": 0.01}
    plain = Supervised(**short, **recipe)
    touched = plain.model_copy(update=idle)
    assert touched.identity() == plain.identity()
    one, other = (train(stage, data, everything(data), tiny) for stage in (plain, touched))
    assert digest(one) == digest(other)
    used = Supervised(**short)
    for name, value in idle.items():
        assert used.model_copy(update={name: value}).identity() != used.identity()

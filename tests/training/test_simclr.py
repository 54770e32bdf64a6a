from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context
from bdtune.errors import UserError
from bdtune.training.nt_xent import nt_xent, projection_head
from bdtune.training.simclr import SimCLR

FP32 = Numerics(device="cpu", precision="fp32")
CTX = Context(seed=2, numerics=FP32)


def plain_nt_xent(views, tau):
    """The card's formula, one term after the other."""
    count = len(views)

    def cosine(i, j):
        return float(views[i] @ views[j] / np.linalg.norm(views[i]) / np.linalg.norm(views[j]))

    total = 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        below = sum(math.exp(cosine(i, j) / tau) for j in range(count) if j != i)
        total -= math.log(math.exp(cosine(i, partner) / tau) / below)
    return total / count


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_loss_is_the_formula(tau):
    views = np.random.default_rng(0).normal(size=(12, 5))
    seen = nt_xent(torch.tensor(views, dtype=torch.float32), tau)
    assert float(seen) == pytest.approx(plain_nt_xent(views, tau), rel=1e-5)


def test_loss_of_two_images_with_equal_views():
    views = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    expected = -math.log(math.e**2 / (math.e**2 + 2))
    assert float(nt_xent(views, 0.5)) == pytest.approx(expected, rel=1e-5)


def test_head_has_no_bias_unless_it_is_normed():
    plain, normed = (
        [tuple(weight.shape) for weight in projection_head(6, 4, kind).parameters()]
        for kind in ("plain", "normed")
    )
    assert plain == [(6, 6), (4, 6)]
    assert normed == [(6, 6), (6,), (6,), (6,), (4, 6), (4,)]


def test_a_normed_head_is_another_training(make_set, tiny):
    data, short = make_set(32), {"epochs": 2, "batch_size": 16, "projection": 8}
    plain, same, normed = (SimCLR(**short, **more) for more in ({}, {"head": "plain"}, {"head": "normed"}))
    assert plain.identity() == same.identity()  # a setting that changes nothing is in no key
    one, other = (stage.run(CTX, data=data, model=tiny) for stage in (plain, normed))
    assert one.arrays.keys() == other.arrays.keys()
    assert digest_of(one.arrays, None) != digest_of(other.arrays, None)


def test_trains_without_labels_and_drops_both_heads(make_set, tiny):
    data = make_set(64)
    stage = SimCLR(epochs=6, batch_size=16, lr=3e-3, projection=8)
    result = stage.run(CTX, data=data, model=tiny)
    assert result.curve[-1]["loss"] < result.curve[0]["loss"]
    assert result.info == {"epochs": 6, "samples": 64, "batch_size": 16}
    assert not any("head" in name or "projection" in name for name in result.arrays)
    assert "model.body.0.weight" in result.arrays
    other = replace(data, labels=(data.labels + 1) % 3)
    again = stage.run(CTX, data=other, model=tiny)
    assert digest_of(again.arrays, again.info) == digest_of(result.arrays, result.info)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumes_to_the_same_bits(make_set, tiny, memory, precision):
    data, stage = make_set(40), SimCLR(epochs=3, batch_size=16, projection=8)
    inputs, numerics = {"data": data, "model": tiny}, Numerics(device="cpu", precision=precision)
    whole = stage.run(Context(seed=2, numerics=numerics), **inputs)
    ctx = Context(seed=2, numerics=numerics, checkpoint=memory(due_after=[2]))
    steps = stage.steps(ctx, **inputs)
    next(steps), next(steps)
    steps.close()
    resumed = stage.run(ctx, **inputs)
    assert len(resumed.curve) == 3
    assert digest_of(resumed.arrays, resumed.info) == digest_of(whole.arrays, whole.info)


def test_a_small_set_makes_one_batch_and_says_so(make_set, tiny, caplog):
    with caplog.at_level(logging.WARNING, "bdtune"):
        result = SimCLR(epochs=1, projection=4).run(CTX, data=make_set(10), model=tiny)
    assert result.info["batch_size"] == 10
    assert "batch_size 256 is more than the 10 images" in caplog.text


def test_one_image_is_refused(make_set, tiny):
    with pytest.raises(UserError, match="at least 2"):
        SimCLR(epochs=1).run(CTX, data=make_set(1), model=tiny)


def test_settings_that_only_others_change_are_in_no_key_of_gssds():
    base = SimCLR().identity()
    assert not {"optimizer", "momentum", "schedule", "horizon", "jitter", "blur"} & base["knobs"].keys()
    assert SimCLR(momentum=0.5, horizon=200).identity() == base
    changed = [
        {"optimizer": "sgd"},
        {"schedule": "cosine"},
        {"smallest_crop": 0.2},
        {"jitter": 0.5},
        {"blur": 0.5},
    ]
    found = [SimCLR(**knobs).identity()["knobs"] for knobs in changed]
    assert all(each != base["knobs"] for each in found)
    assert all({"smallest_crop", "jitter", "blur"} <= each.keys() for each in found[2:])
    sgd = SimCLR(optimizer="sgd")
    assert sgd.identity() == SimCLR(optimizer="sgd", betas=(0.5, 0.5)).identity()
    assert sgd.identity() != SimCLR(optimizer="sgd", momentum=0.5).identity()


def test_a_shorter_training_is_passed_where_the_rate_does_not_depend_on_the_length(make_set, tiny):
    inputs = {"data": make_set(24), "model": tiny}
    knobs = {"batch_size": 8, "projection": 4, "optimizer": "sgd", "lr": 0.05, "blur": 0.5}
    stage = SimCLR(epochs=3, schedule="cosine", horizon=10, **knobs)
    ticks = {tick.epoch: tick.artefact() for tick in stage.steps(CTX, **inputs)}
    ended = stage.at(2).run(CTX, **inputs)
    assert digest_of(ticks[2].arrays, ticks[2].info) == digest_of(ended.arrays, ended.info)
    assert SimCLR(schedule="cosine").at(2) is None
    assert SimCLR().at(2) == SimCLR(epochs=2)


def test_the_rate_is_the_planned_cosine():
    stage = SimCLR(epochs=100, schedule="cosine", horizon=1000, lr=0.4)
    assert stage.rate(0) == 0.4
    assert stage.rate(99) == pytest.approx(0.4 * (1 + math.cos(math.pi * 99 / 1000)) / 2)  # still 0.39
    assert SimCLR(epochs=100, schedule="cosine", lr=0.4).rate(50) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="horizon must be at least epochs"):
        SimCLR(epochs=100, schedule="cosine", horizon=50)

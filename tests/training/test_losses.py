from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch

import bdtune
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.training.augment import Augmentation
from bdtune.training.losses import SampleLosses, cross_entropies
from bdtune.training.supervised import Supervised
from bdtune.training.weights import load_module, module_arrays, new_network

FP32 = Numerics(device="cpu", precision="fp32")
BF16 = Numerics(device="cpu", precision="bf16")


def slow(logits: list[float], label: int) -> float:
    getcontext().prec = 400
    terms = [Decimal(value).exp() for value in logits]
    return float((sum(terms) / terms[label]).ln())


@pytest.mark.parametrize("scale", [1, 30, 300])
def test_losses_equal_exact_arithmetic(scale):
    rng = np.random.default_rng(scale)
    logits = (scale * rng.standard_normal((20, 4))).astype(np.float32)
    labels = rng.integers(0, 4, 20)
    expected = [slow(row, label) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)]
    np.testing.assert_allclose(cross_entropies(logits, labels), expected, rtol=1e-12)


def test_tiny_losses_stay_apart():
    logits = np.array([[40.0, 0], [60.0, 0], [90.0, 0], [500.0, 0]], np.float32)
    losses = cross_entropies(logits, np.zeros(4, int))
    assert losses.dtype == np.float64
    assert (np.diff(losses) < 0).all()
    assert losses[-1] == pytest.approx(math.exp(-500), rel=1e-9)


def test_losses_of_a_trained_network_by_hand(make_set, everything, tiny):
    data = make_set(40)
    inputs = {"data": data, "model": tiny}
    ctx = Context(seed=5, numerics=FP32)
    trained = Supervised(epochs=2, batch_size=8).run(ctx, **{**inputs, "subset": everything(data)})
    found = SampleLosses().run(ctx, **{**inputs, "classifier": trained})
    network = tiny.build(3, (16, 16, 3)).eval()
    load_module(network, trained.arrays)
    seen = Augmentation.of("none", data)
    for row in (0, 7, 39):
        logits = network(seen(torch.from_numpy(data.images[row : row + 1]))).detach().double()
        loss = -logits.log_softmax(1)[0, data.labels[row]].item()
        assert found.arrays["losses"][row] == pytest.approx(loss, rel=1e-4, abs=1e-6)
        assert found.arrays["predictions"][row] == logits.argmax(1).item()
    assert {name: value.dtype for name, value in found.arrays.items()} == {
        "losses": np.float64,
        "predictions": np.int64,
    }


def test_losses_are_the_same_in_every_precision(make_set):
    data = make_set(40)
    narrow = bdtune.model("resnet_s1", stem_width=4)  # one feature, of which bf16 leaves few values
    trained = Artefact(module_arrays(new_network(narrow, data, 1, FP32)))
    inputs = {"data": data, "model": narrow, "classifier": trained}
    found, same = (SampleLosses().run(Context(seed=5, numerics=each), **inputs) for each in (FP32, BF16))
    np.testing.assert_array_equal(found.arrays["losses"], same.arrays["losses"])


def test_losses_are_not_rounded_to_bf16(make_set, everything, tiny):
    data = make_set(96)
    inputs = {"data": data, "model": tiny}
    ctx = Context(seed=5, numerics=BF16)
    trained = Supervised(epochs=1, batch_size=16).run(ctx, **{**inputs, "subset": everything(data)})
    found = SampleLosses().run(ctx, **{**inputs, "classifier": trained})
    again = SampleLosses().run(ctx, **{**inputs, "classifier": trained})
    assert len(np.unique(found.arrays["losses"])) > 60
    np.testing.assert_array_equal(found.arrays["losses"], again.arrays["losses"])


def test_a_network_without_finite_logits_diverged(make_set, everything, tiny):
    data = make_set(20)
    ctx = Context(seed=5, numerics=FP32)
    trained = Supervised(epochs=1, batch_size=8).run(ctx, data=data, model=tiny, subset=everything(data))
    broken = Artefact(
        {**trained.arrays, "model.head.bias": np.full_like(trained.arrays["model.head.bias"], 3e38)}
    )
    broken.arrays["model.head.weight"][:] = 3e38
    with pytest.raises(Diverged, match="not finite"):
        SampleLosses().run(ctx, data=data, model=tiny, classifier=broken)

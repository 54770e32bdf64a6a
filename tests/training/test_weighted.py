from __future__ import annotations

import numpy as np
import pytest
import torch

from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.parts import LossTrace
from bdtune.training.predict import trained_network
from bdtune.training.supervised import Supervised
from bdtune.training.weighted import Weighted
from bdtune.training.weights import module_arrays, new_network

FP32 = Numerics(device="cpu", precision="fp32")
CTX = Context(seed=5, numerics=FP32)
QUICK = {"epochs": 2, "batch_size": 8, "augment": "none", "schedule": "constant"}


def weighed(values):
    return Artefact({"weights": np.asarray(values, np.float32)})


def slow_training(data, model, weights, stage, ids, cap=None):
    """The same training, one sample's loss at a time."""
    network = new_network(model, data, CTX.seed, FP32)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=stage.lr, momentum=stage.momentum, weight_decay=stage.weight_decay
    )
    see = Augmentation.of("none", data)
    images = DeviceSet(data, torch.device("cpu"), ids)
    for epoch in range(stage.epochs):
        network.train()
        for batch in images.shuffled(stage.batch_size, CTX.seed, epoch):
            logits = network(see(batch.images))
            total = torch.zeros(())
            for row, scores, label in zip(batch.rows.tolist(), logits, batch.labels.tolist(), strict=True):
                loss = torch.logsumexp(scores, 0) - scores[label]
                weight = float(weights[ids[row]])
                if cap is not None and weight < 0 and loss.item() > cap:
                    loss = torch.tensor(cap)
                total = total + weight * loss
            optimizer.zero_grad()
            (total / len(batch.rows)).backward()
            optimizer.step()
    return module_arrays(network)


@pytest.mark.parametrize("cap", [None, 0.5])
def test_each_sample_counts_by_its_weight(make_set, everything, tiny, cap):
    data = make_set(30)
    rng = np.random.default_rng(0)
    weights = rng.uniform(-0.3, 1.0, 30).astype(np.float32)
    ids = np.sort(rng.permutation(30)[:20])
    stage = Weighted(**QUICK, lr=0.05, loss_cap=cap)
    inputs = {"data": data, "subset": everything(data, ids), "model": tiny, "weights": weighed(weights)}
    found = stage.run(CTX, **inputs)
    expected = slow_training(data, tiny, weights, stage, ids, cap)
    assert found.arrays.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found.arrays[name], value, rtol=2e-3, atol=2e-4, err_msg=name)


def test_equal_positive_weights_are_plain_training(make_set, everything, tiny):
    data = make_set(30)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    plain = Supervised(**QUICK).run(CTX, **inputs)
    weighted = Weighted(**QUICK).run(CTX, **{**inputs, "weights": weighed(np.ones(30))})
    for name, value in plain.arrays.items():
        np.testing.assert_allclose(weighted.arrays[name], value, rtol=1e-4, atol=1e-5)
    assert "ascent_loss" not in weighted.curve[0]


def test_negative_weights_raise_the_loss_and_are_told(make_set, everything, tiny):
    data = make_set(96)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    signs = np.where(data.labels == 0, -0.5, 1.0)
    knobs = {**QUICK, "epochs": 6, "optimizer": "adam", "lr": 0.02}
    curve = Weighted(**knobs).run(CTX, **{**inputs, "weights": weighed(signs)}).curve
    assert curve[-1]["ascent_loss"] > 2 * curve[0]["ascent_loss"]


def test_unbounded_ascent_ends_as_diverged(make_set, everything, tiny):
    data = make_set(40)
    inputs = {"data": data, "subset": everything(data), "model": tiny, "weights": weighed(-np.ones(40))}
    knobs = {**QUICK, "epochs": 40, "lr": 1e6, "momentum": 0.99}
    with pytest.raises(Diverged, match="weighted"):
        Weighted(**knobs).run(CTX, **inputs)
    bounded = Weighted(**{**knobs, "epochs": 3, "lr": 0.5}, loss_cap=2.0, clip_norm=1.0).run(CTX, **inputs)
    assert all(np.isfinite(value).all() for value in bounded.arrays.values())


def test_a_clipped_step_is_no_longer_than_told(make_set, everything, tiny):
    data = make_set(16)
    knobs = {**QUICK, "epochs": 1, "batch_size": 16, "momentum": 0.0, "weight_decay": 0.0}
    inputs = {"data": data, "subset": everything(data), "model": tiny, "weights": weighed(np.ones(16))}
    start = module_arrays(new_network(tiny, data, CTX.seed, FP32))
    trained = Weighted(**knobs, lr=1.0, clip_norm=0.01).run(CTX, **inputs).arrays
    moved = {name for name in start if "running" not in name and "num_batches" not in name}
    length = np.sqrt(sum(np.square(trained[name] - start[name]).sum() for name in moved))
    assert length == pytest.approx(0.01, rel=1e-3)


class Plain(Supervised):
    def parts(self, fit):
        trace = LossTrace(fit)
        fit.loss = lambda logits, batch: trace.losses(logits, batch).mean()
        return [trace]


def test_a_trace_holds_what_each_sample_lost(make_set, everything, tiny):
    data = make_set(24)
    ids = np.arange(4, 24)
    inputs = {"data": data, "subset": everything(data, ids), "model": tiny}
    stage = Plain(**{**QUICK, "batch_size": 20}, lr=0.05)
    found = stage.run(CTX, **inputs)
    trace = found.arrays["trace.losses"]
    assert trace.shape == (2, 20)
    assert trace.dtype == np.float32
    assert [row["loss"] for row in found.curve] == pytest.approx(trace.mean(1).tolist(), rel=1e-5)
    network = new_network(tiny, data, CTX.seed, FP32).train()  # one batch: the epoch starts as drawn
    logits = network(Augmentation.of("none", data)(torch.from_numpy(data.images[ids])))
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[ids]), reduction="none")
    np.testing.assert_allclose(trace[0], losses.detach().numpy(), rtol=1e-4, atol=1e-5)
    plain = Supervised(**stage.model_dump()).run(CTX, **inputs)
    for name, value in plain.arrays.items():
        np.testing.assert_allclose(found.arrays[name], value, rtol=1e-4, atol=1e-5)
    assert trained_network(tiny, data, found, FP32) is not None  # a trace does not keep weights from loading


@pytest.mark.parametrize("cls", [Plain, Weighted])
def test_interrupted_it_ends_with_the_same_bits(make_set, everything, tiny, memory, cls):
    data = make_set(20)
    inputs = {
        "data": data,
        "subset": everything(data),
        "model": tiny,
        **({"weights": weighed(np.linspace(-1, 1, 20))} if cls is Weighted else {}),
    }
    stage = cls(**{**QUICK, "epochs": 3}, lr=0.01)
    whole = stage.run(CTX, **inputs)
    ctx = Context(seed=5, numerics=FP32, checkpoint=memory(due_after=[2]))
    steps = stage.steps(ctx, **inputs)
    next(steps), next(steps)
    steps.close()
    resumed = stage.run(ctx, **inputs)
    assert digest_of(resumed.arrays, resumed.info) == digest_of(whole.arrays, whole.info)
    without_times = [{k: v for k, v in row.items() if k != "seconds"} for row in resumed.curve]
    assert without_times == [{k: v for k, v in row.items() if k != "seconds"} for row in whole.curve]

"""A device without memory: batches are halved where that changes rounding alone; else a stage fails."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

import bdtune
from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.node import Node
from bdtune.engine.numerics import Numerics
from bdtune.engine.remarks import heard
from bdtune.engine.stage import Context, result_of
from bdtune.engine.store import Store
from bdtune.errors import DeviceFullError
from bdtune.networks.small import LeNetNetwork
from bdtune.plugins.network import Pooled
from bdtune.training import loop
from bdtune.training.adversarial import PGD, AdversarialTraining
from bdtune.training.evaluate import Evaluate
from bdtune.training.features import Features
from bdtune.training.fine_tune import FineTune
from bdtune.training.pgd import robust_predictions
from bdtune.training.predict import predict_logits, trained_network
from bdtune.training.simclr import SimCLR
from bdtune.training.supervised import Supervised
from tests.doubles import CPU, Is

CTX = Context(seed=5, numerics=CPU)
STAGE = Supervised(epochs=2, batch_size=32, optimizer="sgd", lr=0.02, augment="crop_flip")
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB"


class _NoMemory(torch.autograd.Function):
    """Passes what it is given; on the way back there is no memory."""

    @staticmethod
    def forward(ctx, given):
        return given.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise torch.OutOfMemoryError(FULL)


class Device:
    """A device that holds the passes of at most `most` images; it runs out there or on the way back."""

    def __init__(self, monkeypatch, most, *, back=False):
        self.most, self.back, self.refused, self.seen = most, back, 0, []
        for cls in (LeNetNetwork, Pooled):
            monkeypatch.setattr(cls, "features", self.limited(cls.features))

    def limited(self, features):
        def passed(network, images):
            if isinstance(images, FakeTensor):  # of an estimate
                return features(network, images)
            if len(images) <= self.most:
                self.seen.append(len(images))
                return features(network, images)
            self.refused += 1
            if self.back and torch.is_grad_enabled():
                return features(network, _NoMemory.apply(images.requires_grad_()))
            raise torch.OutOfMemoryError(FULL)

        return passed


@pytest.fixture(scope="module")
def lenet():
    return bdtune.model("lenet_s")


def remarks_of(stage, ctx=CTX, **inputs):
    """Return a stage's result and what it remarks."""
    found = []
    with heard(lambda text, info: found.append((text, dict(info)))):
        return result_of(stage.steps(ctx, **inputs)), found


def far(one, other):
    """Return the largest difference of two results."""
    return max(float(np.abs(one.arrays[name] - other.arrays[name]).max()) for name in one.arrays)


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("stage", [STAGE, FineTune(epochs=2, batch_size=32, mode="fst", smoothing=0.1)])
def test_out_of_memory_halves_the_micro_batch_and_goes_on(
    make_set, everything, lenet, monkeypatch, back, stage
):
    data = make_set()
    inputs = {"data": data, "subset": everything(data), "model": lenet}
    if isinstance(stage, FineTune):
        inputs["init"] = STAGE.run(CTX, **inputs)
    whole = stage.run(CTX, **inputs)
    device = Device(monkeypatch, 9, back=back)
    parts, remarks = remarks_of(stage, **inputs)
    assert device.refused == 2, "32, 16; then 8 to the end"
    assert [(info["micro_batch"]) for _, info in remarks] == [16, 8]
    assert "out of memory with 32 images at once; going on with 16" in remarks[0][0]
    assert 0 < far(whole, parts) < 1e-4
    assert parts.curve[-1]["loss"] == pytest.approx(whole.curve[-1]["loss"], abs=1e-4)
    assert parts.curve[-1]["acc"] == whole.curve[-1]["acc"]
    assert [row["micro_batch"] for row in parts.curve] == [8, 8]
    assert all("micro_batch" not in row for row in whole.curve)


def test_the_gradient_of_parts_is_that_of_the_whole(make_set, everything, lenet):
    """Parts of unequal size too: one step down the gradient, compared in full."""
    data = make_set(count=30)
    inputs = {"data": data, "subset": everything(data), "model": lenet}
    plain = Supervised(epochs=1, batch_size=30, momentum=0.0, weight_decay=0.0, lr=1.0, augment="none")
    start = Supervised(epochs=1, batch_size=30, momentum=0.0, weight_decay=0.0, lr=1e-30, augment="none")
    before, whole = start.run(CTX, **inputs), plain.run(CTX, **inputs)
    numerics = CPU.model_copy(update={"micro_batch": 7})  # 7, 7, 7, 7, 2
    parts = plain.run(Context(seed=5, numerics=numerics), **inputs)
    assert far(before, whole) > 1e-3
    assert 0 < far(whole, parts) < 1e-6
    assert "micro_batch" not in parts.curve[0], "it is in the key"


def test_where_it_never_happens_nothing_is_marked(make_set, everything, lenet):
    data = make_set()
    found, remarks = remarks_of(STAGE, data=data, subset=everything(data), model=lenet)
    assert remarks == []
    assert "micro_batch" not in {**found.info, **found.curve[0]}


@pytest.mark.parametrize("back", [False, True])
def test_batch_norm_in_training_fails_alone_and_says_what_it_needed(
    make_set, everything, tiny, monkeypatch, back
):
    data = make_set()
    Device(monkeypatch, 9, back=back)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    with pytest.raises(DeviceFullError) as caught:
        STAGE.run(CTX, **inputs)
    text = str(caught.value)
    assert "a step on 32 images needs about" in text
    assert "batches cannot be halved, as batch norm in training mode sees the whole batch" in text
    assert "resources.gpu" in text
    assert "Tried to allocate 2.00 GiB" in text
    assert "total capacity" not in text


def test_batch_norm_that_only_uses_its_statistics_is_no_hindrance(make_set, everything, tiny, monkeypatch):
    data = make_set()
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    stage = FineTune(epochs=1, batch_size=32, bn_mode="eval")
    inputs["init"] = STAGE.run(CTX, **inputs)
    whole = stage.run(CTX, **inputs)
    Device(monkeypatch, 16)
    assert 0 < far(whole, stage.run(CTX, **inputs)) < 1e-4


def test_a_loss_that_compares_images_is_not_halved(make_set, lenet, monkeypatch):
    Device(monkeypatch, 9)
    with pytest.raises(DeviceFullError, match="compares the samples of a batch"):
        SimCLR(epochs=1, batch_size=32).run(CTX, data=make_set(), model=lenet)


def test_a_loss_that_nobody_marked_is_not_halved(make_set, everything, lenet, monkeypatch):
    class Own(Supervised):
        name = "own_loss"

        def parts(self, fit):
            plain = fit.loss
            fit.loss = lambda logits, batch: 2 * plain(logits, batch)
            return ()

    Device(monkeypatch, 9)
    data = make_set()
    with pytest.raises(DeviceFullError, match="its loss is not known to be a mean over samples"):
        Own(epochs=1, batch_size=32).run(CTX, data=data, subset=everything(data), model=lenet)


def test_what_failed_holds_no_memory(make_set, everything, tiny, monkeypatch):
    """Nothing of the training is alive while its error is: the device's memory can go to others."""
    made = []
    build = type(tiny).build

    def noted(model, *args):
        network = build(model, *args)
        made.append(weakref.ref(network))
        return network

    monkeypatch.setattr(type(tiny), "build", noted)
    freed = []
    monkeypatch.setattr("bdtune.training.memory.free_cached", lambda: freed.append(True))
    Device(monkeypatch, 9)
    data = make_set()
    with pytest.raises(DeviceFullError) as caught:
        STAGE.run(CTX, data=data, subset=everything(data), model=tiny)
    gc.collect()
    assert freed == [True]
    assert caught.value.__context__ is None
    assert made
    assert [reference() for reference in made] == [None] * len(made)


def test_a_resumed_training_remembers_that_it_was_halved(make_set, everything, lenet, monkeypatch, memory):
    data, slot = make_set(), memory(due_after=[1])
    inputs = {"data": data, "subset": everything(data), "model": lenet}
    ctx = Context(seed=5, numerics=CPU, checkpoint=slot)
    with monkeypatch.context() as short:
        Device(short, 8)
        steps = STAGE.steps(ctx, **inputs)
        next(steps)
        steps.close()
    _, remarks = remarks_of(STAGE, ctx, **inputs)
    assert [info for _, info in remarks] == [{"micro_batch": 8}]


@pytest.mark.parametrize("size", [32, 5])
def test_passes_without_a_way_back_are_halved_whatever_the_network(
    make_set, everything, tiny, monkeypatch, size
):
    data = make_set()
    trained = STAGE.run(CTX, data=data, subset=everything(data), model=tiny)
    network = trained_network(tiny, data, trained, CPU)
    attack = PGD(steps=2)
    stages = [
        (Evaluate(robust="pgd", pgd=attack), {"clean": data, "classifier": trained}),
        (Features(), {"data": data, "encoder": trained}),
    ]
    whole = [stage.run(CTX, model=tiny, **inputs) for stage, inputs in stages]
    logits, robust = predict_logits(network, data, CPU), robust_predictions(network, data, attack, 1, CPU)
    device = Device(monkeypatch, size)
    np.testing.assert_allclose(predict_logits(network, data, CPU), logits, atol=1e-5)
    assert np.array_equal(robust_predictions(network, data, attack, 1, CPU), robust)
    for (stage, inputs), before in zip(stages, whole, strict=True):
        after, remarks = remarks_of(stage, model=tiny, **inputs)
        assert remarks
        assert {k: v for k, v in after.info.items() if k != "micro_batch"} == pytest.approx(dict(before.info))
        assert far(after, before) < 1e-4 if after.arrays else True
    assert max(device.seen) <= size


def test_a_single_image_that_does_not_fit_ends_it(make_set, everything, lenet, monkeypatch):
    device = Device(monkeypatch, 0)
    data = make_set()
    with pytest.raises(DeviceFullError):
        STAGE.run(CTX, data=data, subset=everything(data), model=lenet)
    assert device.refused == 6, "32, 16, 8, 4, 2, 1"


def test_an_asked_for_micro_batch_bounds_every_pass(make_set, everything, lenet, monkeypatch):
    numerics = Numerics(device="cpu", precision="fp32", micro_batch=6)
    ctx, data = Context(seed=5, numerics=numerics), make_set()
    inputs = {"data": data, "subset": everything(data), "model": lenet}
    device = Device(monkeypatch, 6)
    stage = AdversarialTraining(epochs=1, batch_size=32, pgd=PGD(steps=2))
    trained, remarks = remarks_of(stage, ctx, **inputs)
    Evaluate().run(ctx, clean=data, model=lenet, classifier=trained)
    assert device.refused == 0
    assert remarks == []


@pytest.mark.parametrize(
    ("stage", "why"), [(STAGE, "batch norm"), (SimCLR(epochs=1, batch_size=32), "compares")]
)
def test_a_micro_batch_without_effect_is_mentioned(make_set, everything, tiny, stage, why):
    data = make_set()
    ctx = Context(seed=5, numerics=CPU.model_copy(update={"micro_batch": 6}))
    subset = {"subset": everything(data)} if stage is STAGE else {}
    whole = stage.run(CTX, data=data, model=tiny, **subset)
    found, remarks = remarks_of(stage, ctx, data=data, model=tiny, **subset)
    assert far(whole, found) == 0
    assert "numerics.micro_batch 6 is without effect" in remarks[0][0]
    assert why in remarks[0][0]


def node_of(stage, data, subset, model, seed=0):
    inputs = {
        "data": Is(word="images", value=data),
        "subset": Is(word="everything", value=subset),
        "model": Is(word="network", value=model),
    }
    return Node(stage, inputs, seed, CPU)


def test_a_store_is_told_of_it_and_a_plain_result_is_not(make_set, everything, lenet, monkeypatch, tmp_path):
    data, said = make_set(), []
    executor = Executor(Store(tmp_path), None, on_remark=lambda node, text: said.append((node.name, text)))
    node = node_of(STAGE, data, everything(data), lenet)
    plain = node_of(STAGE, data, everything(data), lenet, seed=1)
    executor.compute(plain)
    Device(monkeypatch, 16)
    assert executor.compute(node).info["micro_batch"] == 16
    manifests = {manifest.key: manifest for manifest in executor.store.entries()}
    halved, whole = (manifests[executor.resolver.key(each)] for each in (node, plain))
    assert (halved.info["micro_batch"], whole.info.get("micro_batch")) == (16, None)
    assert halved.preimage["numerics"] == whole.preimage["numerics"]
    assert [name for name, _ in said] == ["supervised"]


def test_a_training_that_fails_takes_nothing_else_down(make_set, everything, tiny, monkeypatch, tmp_path):
    data = make_set()
    executor = Executor(Store(tmp_path), None)
    large = node_of(STAGE, data, everything(data), tiny)
    small = node_of(STAGE.model_copy(update={"batch_size": 8}), data, everything(data), tiny)
    Device(monkeypatch, 9)
    with pytest.raises(StageFailed) as caught:
        executor.compute(large)
    assert caught.value.status == "failed"
    assert "DeviceFullError: out of memory on cpu: a step on 32 images needs" in caught.value.error
    assert executor.store.failure(caught.value.key).traceback == "", "the error says all"
    assert executor.compute(small).info["samples"] == len(data)


def test_the_step_itself_is_not_repeated(make_set, everything, lenet, monkeypatch):
    """Out of memory in the optimizer, weights may have changed already."""

    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError(FULL)

    make = loop.make_optimizer

    def made(*args, **kwargs):
        optimizer = make(*args, **kwargs)
        optimizer.register_step_pre_hook(full)
        return optimizer

    monkeypatch.setattr(loop, "make_optimizer", made)
    data = make_set()
    with pytest.raises(DeviceFullError):
        STAGE.run(CTX, data=data, subset=everything(data), model=lenet)

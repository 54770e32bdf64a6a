"""Trainings that are no classifier's descent: each is one stage below `TorchStage`, of plain parts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss

from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.training import loop, session, weights
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model

CPU = Numerics(device="cpu", precision="fp32")
DEVICE = torch.device("cpu")


class Epochs(TorchStage):
    epochs: int = 3

    def length(self) -> int:
        return self.epochs


class SemiSupervised(Epochs):
    """Two loaders, labelled and unlabelled, and an average of the weights."""

    name: ClassVar[str] = "test_semi_supervised"

    def training(self, ctx: Context, *, data: ImageSet, labelled: Artefact, model: Model) -> loop.Training:
        network, average = (weights.new_network(model, data, ctx.seed, ctx.numerics) for _ in range(2))
        optimizer = loop.make_optimizer(network.parameters(), "sgd", 0.01)
        known, unknown = DeviceSet(data, DEVICE, labelled.arrays["ids"]), DeviceSet(data, DEVICE)
        see = Augmentation.of("flip", data)

        def epoch(done: int) -> dict[str, float]:
            meter, draws = loop.Meter(self.name, DEVICE), session.generator(ctx.seed, "augment", done)
            pairs = zip(
                known.shuffled(8, ctx.seed, done), unknown.shuffled(8, ctx.seed + 1, done), strict=False
            )
            for batch, other in pairs:
                with torch.no_grad():
                    guess = average(see(other.images, draws)).softmax(1)
                loss = cross_entropy(network(see(batch.images, draws)), batch.labels)
                loss = loss + mse_loss(network(see(other.images, draws)).softmax(1), guess)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                        mean.lerp_(weight, 0.1)
                meter.add(loss, len(batch.rows))
            return {"loss": meter.means()[0]}

        modules = {"model": network, "average": average}
        return loop.Training(
            self.name,
            self.epochs,
            modules,
            {"model": optimizer},
            epoch,
            lambda _: (weights.modules_arrays(modules), {}),
        )


class Distillation(Epochs):
    """A student that imitates what a teacher computes inside, with a rate of its own for the head."""

    name: ClassVar[str] = "test_distillation"

    def training(self, ctx: Context, *, data: ImageSet, model: Model, teacher: Artefact) -> loop.Training:
        student = weights.new_network(model, data, ctx.seed, ctx.numerics)
        shown = weights.new_network(model, data, ctx.seed, ctx.numerics, teacher).eval()
        body = [p for name, layer in student.layers.items() if name != "head" for p in layer.parameters()]
        groups = [{"params": body, "lr": 0.01}, {"params": student.head.parameters(), "lr": 0.1}]
        optimizer = torch.optim.Adam(groups)
        images, see = DeviceSet(data, DEVICE), Augmentation.of("none", data)
        inside = list(student.layers)[-2:]

        def epoch(done: int) -> dict[str, float]:
            meter = loop.Meter(self.name, DEVICE)
            for batch in images.shuffled(8, ctx.seed, done):
                pixels = see(batch.images)
                with torch.no_grad():
                    _, wanted = shown.with_layers(pixels, inside)
                logits, found = student.with_layers(pixels, inside)
                loss = cross_entropy(logits, batch.labels)
                loss = loss + sum(mse_loss(found[name], wanted[name]) for name in inside)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                meter.add(loss, len(batch.rows))
            return {"loss": meter.means()[0]}

        return loop.Training(
            self.name, self.epochs, {"model": student}, {"model": optimizer}, epoch,
            lambda _: (weights.module_arrays(student), {}),
        )  # fmt: skip


class MaskLearning(Epochs):
    """Two optimizers against one another: masks of the head's weights, and the image that fools them."""

    name: ClassVar[str] = "test_mask_learning"

    def training(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> loop.Training:
        network = (
            weights.new_network(model, data, ctx.seed, ctx.numerics, classifier).eval().requires_grad_(False)
        )
        height, width, channels = data.image_shape
        held = torch.nn.ParameterDict(
            {"mask": torch.ones_like(network.head.weight), "noise": torch.zeros(channels, height, width)}
        )
        optimizers = {name: loop.make_optimizer([held[name]], "sgd", 0.1) for name in ("mask", "noise")}
        images, see = DeviceSet(data, DEVICE), Augmentation.of("none", data)

        def epoch(done: int) -> dict[str, float]:
            meter = loop.Meter(self.name, DEVICE)
            for batch in images.shuffled(8, ctx.seed, done):
                for name, sign in (("noise", -1), ("mask", 1)):
                    features = network.features(see(batch.images) + held["noise"])
                    loss = cross_entropy(features @ (held["mask"] * network.head.weight).T, batch.labels)
                    optimizers[name].zero_grad()
                    (sign * loss).backward()
                    optimizers[name].step()
                with torch.no_grad():
                    held["mask"].clamp_(0, 1)
                meter.add(loss, len(batch.rows))
            return {"loss": meter.means()[0]}

        return loop.Training(
            self.name, self.epochs, {"held": held}, optimizers, epoch,
            lambda _: (weights.module_arrays(held, "held."), {}),
        )  # fmt: skip


@pytest.fixture
def inputs(make_set: Any, tiny: Any) -> dict[str, dict[str, Any]]:
    data = make_set(24)
    drawn = weights.new_network(tiny, data, 7, CPU)
    trained = Artefact(weights.module_arrays(drawn))
    ids = np.arange(0, 24, 3)
    labelled = Artefact({"ids": ids, "labels": data.labels[ids]})
    return {
        "SemiSupervised": {"data": data, "model": tiny, "labelled": labelled},
        "Distillation": {"data": data, "model": tiny, "teacher": trained},
        "MaskLearning": {"data": data, "model": tiny, "classifier": trained},
    }


STAGES = [SemiSupervised, Distillation, MaskLearning]


@pytest.mark.parametrize("cls", STAGES)
def test_interrupted_it_ends_with_the_same_bits(inputs: Any, memory: Any, cls: type[Epochs]) -> None:
    own, ctx = inputs[cls.__name__], Context(seed=5, numerics=CPU)
    whole = cls().run(ctx, **own)
    assert len(whole.curve) == 3
    ctx = replace(ctx, checkpoint=memory(due_after=[2]))
    steps = cls().steps(ctx, **own)
    next(steps), next(steps)
    steps.close()
    torch.manual_seed(1)
    again = cls().run(ctx, **own)
    assert digest_of(again.arrays, None) == digest_of(whole.arrays, None)
    assert digest_of(whole.arrays, None) != digest_of(cls(epochs=2).run(ctx, **own).arrays, None)


@pytest.mark.parametrize("cls", STAGES)
def test_weights_that_are_not_finite_end_it(
    inputs: Any, monkeypatch: pytest.MonkeyPatch, cls: type[Epochs]
) -> None:
    """Whatever is trained: a stage need not look itself."""
    monkeypatch.setattr(loop.Meter, "means", lambda self: (0.0, 0.0))
    plain = loop.Training.__init__

    def broken(self: Any, name: str, epochs: int, modules: Any, *rest: Any) -> None:
        with torch.no_grad():
            next(iter(next(iter(modules.values())).parameters())).fill_(float("nan"))
        plain(self, name, epochs, modules, *rest)

    monkeypatch.setattr(loop.Training, "__init__", broken)
    with pytest.raises(Diverged, match=r"weights are not finite after epoch 1 of 3|the loss became nan"):
        cls().run(Context(seed=5, numerics=CPU), **inputs[cls.__name__])


@pytest.mark.parametrize("cls", STAGES)
def test_deterministic_algorithms_are_on_while_it_trains_and_off_between(
    inputs: Any, monkeypatch: pytest.MonkeyPatch, cls: type[Epochs]
) -> None:
    seen = []
    plain = loop.Meter.add

    def noted(self: Any, *args: Any) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        plain(self, *args)

    monkeypatch.setattr(loop.Meter, "add", noted)
    numerics = CPU.model_copy(update={"deterministic": True})
    steps = cls().steps(Context(seed=5, numerics=numerics), **inputs[cls.__name__])
    next(steps)
    assert seen
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()

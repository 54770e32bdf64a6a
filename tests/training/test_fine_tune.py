"""Fine-tuning: each mode against a slow plain version, and what leaves the result as it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.fine_tune import FineTune
from bdtune.training.fine_tune_parts import perturbation, unmoved_statistics
from bdtune.training.fit import Fit
from bdtune.training.supervised import Supervised
from bdtune.training.weights import module_arrays, new_network
from tests.doubles import CPU

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.plugins.network import Network

CTX = Context(seed=4, numerics=CPU)
SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 10, "augment": "none", "lr": 0.05}


@pytest.fixture(scope="module")
def inputs(make_set: Any, everything: Any, tiny: Any) -> dict[str, Any]:
    """Inputs of the tuning: a network that was trained a little, and other images."""
    first, data = make_set(40, side=8), make_set(24, side=8, seed=1)
    start = Supervised(epochs=2, batch_size=10, augment="none", lr=0.02)
    init = start.run(CTX, data=first, subset=everything(first), model=tiny)
    return {"data": data, "subset": everything(data), "model": tiny, "init": init}


def tuned(inputs: dict[str, Any], **knobs: Any) -> Artefact:
    return FineTune(**SMALL, **knobs).run(CTX, **inputs)


def same(one: Artefact, two: Artefact) -> bool:
    return digest_of(one.arrays, None) == digest_of(two.arrays, None)


def batches(inputs: dict[str, Any], stage: FineTune) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """The steps' epochs, images and labels, as the stage sees them."""
    data = inputs["data"]
    images, see = DeviceSet(data, torch.device("cpu")), Augmentation.of("none", data)
    for epoch in range(stage.epochs):
        for batch in images.shuffled(stage.batch_size, CTX.seed, epoch):
            yield epoch, see(batch.images), batch.labels


def started(inputs: dict[str, Any]) -> Network:
    return new_network(inputs["model"], inputs["data"], CTX.seed, CPU, inputs["init"]).train()


def descent(network: Network, stage: FineTune) -> torch.optim.SGD:
    rule = {"momentum": stage.momentum, "weight_decay": stage.weight_decay}
    return torch.optim.SGD([w for w in network.parameters() if w.requires_grad], stage.lr, **rule)


def close(network: Network, found: Artefact) -> None:
    for name, array in module_arrays(network).items():
        np.testing.assert_allclose(found.arrays[name], array, rtol=1e-3, atol=1e-5, err_msg=name)


# Sharpness


def test_the_perturbation_on_a_quadratic() -> None:
    """L = (a w1^2 + b w2^2) / 2 with a = 1, b = 4: worked by hand."""
    curvature = torch.tensor([1.0, 4.0])
    for weights, adaptive, step, after in (
        ((1.0, 1.0), False, (0.02425, 0.09701), (1.02425, 4.38806)),
        ((2.0, 1.0), True, (0.14142, 0.07071), (2.14142, 4.28284)),
    ):
        w = torch.tensor(weights)
        (moved,) = perturbation([w], [curvature * w], 0.1, adaptive=adaptive)
        torch.testing.assert_close(moved, torch.tensor(step), rtol=0, atol=1e-5)
        torch.testing.assert_close(curvature * (w + moved), torch.tensor(after), rtol=0, atol=5e-5)


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_vanishing_gradient_perturbs_nothing(adaptive: bool) -> None:
    zero = torch.zeros(3)
    assert perturbation([torch.ones(3)], [zero], 2.0, adaptive=adaptive)[0].tolist() == [0.0] * 3


def test_without_a_radius_it_is_plain_tuning_to_the_last_bit(inputs: dict[str, Any]) -> None:
    plain = tuned(inputs)
    assert same(plain, tuned(inputs, mode="ft_sam", rho=0.0))
    assert not same(plain, tuned(inputs, mode="ft_sam", rho=1.0))


@pytest.mark.parametrize("adaptive", [True, False])
def test_ft_sam_is_the_slow_one(inputs: dict[str, Any], adaptive: bool) -> None:
    stage = FineTune(**{**SMALL, "epochs": 1}, mode="ft_sam", rho=0.1, adaptive=adaptive)
    network = started(inputs)
    optimizer = descent(network, stage)
    for epoch, images, labels in batches(inputs, stage):
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        weights = [w for w in network.parameters() if w.grad is not None]
        before = [w.detach().clone() for w in weights]
        scales = [w.abs() if adaptive else torch.ones_like(w) for w in before]
        square = sum(float((scale * w.grad).square().sum()) for w, scale in zip(weights, scales, strict=True))
        with torch.no_grad():
            for w, scale in zip(weights, scales, strict=True):
                w.add_(stage.rho * scale.square() * w.grad / math.sqrt(square))
        statistics = [buffer.clone() for buffer in network.buffers()]
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        with torch.no_grad():
            for w, old in zip(weights, before, strict=True):
                w.copy_(old)
            for buffer, old in zip(network.buffers(), statistics, strict=True):
                buffer.copy_(old)
        optimizer.param_groups[0]["lr"] = stage.lr * (1 + math.cos(math.pi * epoch / stage.epochs)) / 2
        optimizer.step()
    close(network, stage.run(CTX, **inputs))


def test_the_second_pass_leaves_the_running_statistics(inputs: dict[str, Any]) -> None:
    one_step = {**SMALL, "epochs": 1, "batch_size": 24}
    plain, sharp = (FineTune(**one_step, mode=mode).run(CTX, **inputs) for mode in ("ft", "ft_sam"))
    running = [name for name in plain.arrays if "running" in name or "tracked" in name]
    assert running
    assert all(np.array_equal(plain.arrays[name], sharp.arrays[name]) for name in running)
    network = started(inputs)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with unmoved_statistics(network):
        network(torch.rand(4, 3, 8, 8))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    network(torch.rand(4, 3, 8, 8))
    assert any(not torch.equal(before[name], value) for name, value in network.state_dict().items())


# The head


@pytest.mark.parametrize("mode", ["ft_init", "fst", "fe_tuning"])
def test_a_new_head_has_its_law_and_depends_on_the_seed_alone(inputs: dict[str, Any], mode: Any) -> None:
    def drawn(seed: int) -> torch.nn.Linear:
        stage = FineTune(mode=mode)
        fit = Fit(stage, replace(CTX, seed=seed), **inputs)
        stage.parts(fit)
        return fit.network.head

    head = drawn(1)
    bound = 1 / math.sqrt(head.in_features)
    for values in (head.weight, head.bias):
        assert float(values.detach().abs().max()) <= bound * (1 + 1e-6)
    assert not np.array_equal(head.weight.detach(), inputs["init"].arrays["model.head.weight"])
    assert torch.equal(head.weight, drawn(1).weight)
    assert not torch.equal(head.weight, drawn(2).weight)


def test_without_reset_and_pull_it_is_plain_tuning(inputs: dict[str, Any]) -> None:
    plain = tuned(inputs)
    assert same(plain, tuned(inputs, mode="ft_init", reset=False))
    assert same(plain, tuned(inputs, mode="fst", reset=False, project=False, alpha=0.0))
    assert same(tuned(inputs, mode="ft_init"), tuned(inputs, mode="fst", project=False, alpha=0.0))
    assert not same(plain, tuned(inputs, mode="ft_init"))


@pytest.mark.parametrize("project", [True, False])
def test_fst_is_the_slow_one(inputs: dict[str, Any], project: bool) -> None:
    stage = FineTune(**SMALL, mode="fst", alpha=0.3, project=project, reset=False)
    network = started(inputs)
    old, optimizer = network.head.weight.detach().clone(), descent(network, stage)
    for epoch, images, labels in batches(inputs, stage):
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        network.head.weight.grad += stage.alpha * old  # the gradient of alpha <W, W_0>
        optimizer.param_groups[0]["lr"] = stage.lr * (1 + math.cos(math.pi * epoch / stage.epochs)) / 2
        optimizer.step()
        if project:
            with torch.no_grad():
                network.head.weight *= old.norm() / network.head.weight.norm()
    found = stage.run(CTX, **inputs)
    close(network, found)
    now, before = (np.linalg.norm(a.arrays["model.head.weight"]) for a in (found, inputs["init"]))
    assert (abs(now - before) < 1e-5 * before) == project


@pytest.mark.parametrize(
    ("mode", "moves"), [("lp", {"head"}), ("fe_tuning", {"body"}), ("ft", {"head", "body"})]
)
def test_which_weights_a_mode_trains(inputs: dict[str, Any], mode: Any, moves: set[str]) -> None:
    before = inputs["init"].arrays
    found = FineTune(**SMALL, mode=mode, reset=False, bn_mode="eval").run(CTX, **inputs).arrays
    changed = {name.split(".")[1] for name in before if not np.array_equal(before[name], found[name])}
    assert changed == moves


# Labels, rates, batch norm


def test_smoothed_labels() -> None:
    from bdtune.training.fine_tune_parts import smooth_labels

    class Bare:
        loss: Any

        class data:
            num_classes = 10

    class Labelled:
        labels = torch.tensor([3, 0, 7])

    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0), requires_grad=True)
    for share in (0.05, 0.1, 0.5):
        fit = Bare()
        smooth_labels(fit, share)  # type: ignore[arg-type]
        wanted = torch.full((3, 10), share / 9)
        wanted[torch.arange(3), Labelled.labels] = 1 - share
        expected = -(wanted * log_softmax(logits, 1)).sum(1).mean()
        found = fit.loss(logits, Labelled)
        torch.testing.assert_close(found, expected)
        (gradient,) = torch.autograd.grad(found, logits)
        torch.testing.assert_close(gradient.sum(1), torch.zeros(3), rtol=0, atol=1e-6)
        assert float(fit.loss(torch.zeros(3, 10), Labelled)) == pytest.approx(2.302585, abs=1e-6)


def test_the_rate_of_backdoorbenchs_ft_sam_rises_again() -> None:
    stage = FineTune(schedule_unit="batch", horizon=100)
    found = [stage.rate_of_step(step, 0) for step in (0, 50, 100, 150, 200)]
    assert found == pytest.approx([0.01, 0.005, 0.0, 0.005, 0.01], abs=1e-12)
    by_epoch = FineTune(epochs=100)
    assert [by_epoch.rate(done) for done in (0, 50)] == pytest.approx([0.01, 0.005])
    assert FineTune(epochs=50, horizon=100).rate(50) == pytest.approx(0.005)


def test_super_fine_tuning_rises_and_falls_in_twenty_steps() -> None:
    stage = FineTune(schedule="triangular", lr=0.03)
    early = [stage.rate_of_step(step, 0) for step in (0, 5, 10, 15, 20, 30)]
    assert early == pytest.approx([0.03, 1.265, 2.5, 1.265, 0.03, 2.5])
    late = [stage.rate_of_step(step, done) for step, done in ((10, 39), (10, 40), (0, 99))]
    assert late == pytest.approx([2.5, 0.05, 0.03])


@pytest.mark.parametrize(
    "knobs", [{"schedule_unit": "batch", "horizon": 4}, {"schedule": "triangular", "peaks": (0.1, 0.02)}]
)
def test_a_rate_by_batch_is_the_one_that_is_used(inputs: dict[str, Any], memory: Any, knobs: Any) -> None:
    stage = FineTune(**SMALL, **knobs)
    network = started(inputs)
    optimizer = descent(network, stage)
    lasts = {}
    for step, (epoch, images, labels) in enumerate(batches(inputs, stage)):
        optimizer.param_groups[0]["lr"] = lasts[epoch] = stage.rate_of_step(step, epoch)
        optimizer.zero_grad()
        cross_entropy(network(images), labels).backward()
        optimizer.step()
    found = stage.run(CTX, **inputs)
    close(network, found)
    assert [row["lr"] for row in found.curve] == pytest.approx([*lasts.values()])


@pytest.mark.parametrize(
    "knobs", [{"mode": "ft_sam"}, {"mode": "fst"}, {"schedule_unit": "batch", "horizon": 4}]
)
def test_interrupted_it_ends_with_the_same_bits(inputs: dict[str, Any], memory: Any, knobs: Any) -> None:
    stage = FineTune(**SMALL, **knobs)
    whole = stage.run(CTX, **inputs)
    ctx = replace(CTX, checkpoint=memory(due_after=[2]))
    steps = stage.steps(ctx, **inputs)
    next(steps), next(steps)
    steps.close()
    assert same(stage.run(ctx, **inputs), whole)


def test_zero_epochs_leave_the_classifier(inputs: dict[str, Any]) -> None:
    found = FineTune(epochs=0).run(CTX, **inputs)
    assert same(found, Artefact(inputs["init"].arrays))


def test_batch_norm_modes_differ(inputs: dict[str, Any]) -> None:
    running = "running_mean"
    kept = {mode: tuned(inputs, bn_mode=mode).arrays for mode in ("train", "frozen_stats", "eval")}
    start = inputs["init"].arrays
    names = [name for name in start if name.endswith(running)]
    still = {mode: all(np.array_equal(start[n], found[n]) for n in names) for mode, found in kept.items()}
    assert still == {"train": False, "frozen_stats": True, "eval": True}


# What it records


def test_it_records_how_far_it_went_and_the_validation_part(inputs: dict[str, Any], everything: Any) -> None:
    data = inputs["data"]
    held = everything(data, range(6))
    stage = FineTune(**SMALL)
    found = stage.run(CTX, **{**inputs, "subset": everything(data, range(6, 24))}, validation=held)
    row = found.curve[-1]
    network = new_network(inputs["model"], data, 0, CPU, found).eval()
    with torch.no_grad():
        logits = network(Augmentation.of("none", data)(torch.from_numpy(data.images[:6])))
    labels = torch.from_numpy(data.labels[:6])
    assert row["validation_loss"] == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    assert row["validation_acc"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    names = [f"model.{name}" for name, _ in network.named_parameters()]
    before, after = inputs["init"].arrays, found.arrays
    far = math.sqrt(sum(float(np.square(after[n] - before[n]).sum()) for n in names))
    whole = math.sqrt(sum(float(np.square(before[n]).sum()) for n in names))
    assert row["distance"] == pytest.approx(far / whole, rel=1e-4)
    one, two = (a["model.head.weight"].ravel() for a in (before, after))
    cosine = float(one @ two) / float(np.linalg.norm(one) * np.linalg.norm(two))
    assert row["head_cosine"] == pytest.approx(cosine, rel=1e-4)
    silent = stage.run(CTX, **{**inputs, "subset": everything(data, range(6, 24))})
    assert same(found, silent)  # what is measured changes nothing
    assert "validation_acc" not in silent.curve[-1]


def test_settings_of_other_modes_are_in_no_key() -> None:
    plain = FineTune().config_hash
    for knobs in ({"rho": 8.0}, {"alpha": 0.5}, {"reset": False}, {"adaptive": False}, {"peaks": (1.0, 0.1)}):
        assert FineTune(**knobs).config_hash == plain  # type: ignore[arg-type]
    assert FineTune(mode="ft_sam").config_hash != FineTune(mode="ft_sam", rho=8.0).config_hash
    assert FineTune(bn_mode="eval").config_hash != plain

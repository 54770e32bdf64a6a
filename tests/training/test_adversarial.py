"""PGD against a slow plain version, adversarial training, robust accuracy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

from bdtune.checking import check
from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.training.adversarial import PGD, AdversarialTraining
from bdtune.training.evaluate import Evaluate
from bdtune.training.pgd import Ascent, pixel_augmentation, pixel_logits, robust_predictions
from bdtune.training.session import generator
from bdtune.training.supervised import Supervised
from bdtune.training.weights import module_arrays, new_network
from tests.trained import one_thread

FP32 = Numerics(device="cpu", precision="fp32")
BF16 = Numerics(device="cpu", precision="bf16")
SHORT = PGD(steps=2, step=4 / 255)
FGSM = PGD(steps=3, random_start=False)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained_once(make_set, everything, tiny):
    data = make_set(48)
    stage = Supervised(epochs=4, batch_size=16, optimizer="adam", lr=0.02, augment="none")
    with one_thread():
        weights = stage.run(Context(seed=1, numerics=FP32), data=data, subset=everything(data), model=tiny)
    return data, weights


@pytest.fixture
def trained(trained_once, tiny):
    """A network with a few epochs behind it, its images as pixels, and their labels."""
    data, weights = trained_once
    network = new_network(tiny, data, 0, FP32, weights).eval()
    pixels = pixel_augmentation("none", data)(torch.from_numpy(data.images))
    return data, weights, network, pixels, torch.from_numpy(data.labels)


def slow_pgd(network, pixels, labels, knobs, data, start):
    """As the papers write it: one image at a time, in pixels, with the normalisation in the graph."""
    mean, std = (torch.tensor(each)[:, None, None] for each in (data.mean, data.std))
    found = []
    for image, label, offset in zip(pixels, labels, start, strict=True):
        x = (image + offset).clamp(0, 1)
        for _ in range(knobs.steps):
            x = x.detach().requires_grad_()
            cross_entropy(network(((x - mean) / std)[None]), label[None]).backward()
            x = x.detach() + knobs.step * x.grad.sign()
            x = image + (x - image).clamp(-knobs.eps, knobs.eps)
            x = x.clamp(0, 1)
        found.append(x)
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [FGSM, PGD(steps=3), PGD(eps=1.0, step=0.3, steps=2), PGD(eps=0)])
def test_attack_is_the_papers(trained, knobs):
    data, _, network, pixels, labels = trained
    start = torch.zeros_like(pixels)
    if knobs.random_start:
        start = (2 * torch.rand(pixels.shape, generator=draws()) - 1) * knobs.eps
    expected = slow_pgd(network, pixels, labels, knobs, data, start)
    found = Ascent(network, knobs, data, FP32)(pixels, labels, draws())
    # a gradient of nearly zero may change its sign with the order of summation
    differing = (found - expected).abs() > 1e-5
    assert differing.float().mean() < 0.002
    assert differing.float().mean() == 0 or knobs.eps > 0


@pytest.mark.parametrize(
    ("eps", "random_start", "numerics"),
    list(itertools.product([0.5 / 255, 8 / 255, 0.5], [True, False], [FP32, BF16])),
)
def test_images_stay_in_the_ball_and_between_black_and_white(trained, eps, random_start, numerics):
    data, _, network, pixels, labels = trained
    knobs = PGD(eps=eps, step=0.1, steps=3, random_start=random_start)
    before = pixels.clone()
    found = Ascent(network, knobs, data, numerics)(pixels, labels, draws())
    assert torch.equal(pixels, before)
    assert found.dtype == torch.float32
    assert (found - pixels).abs().max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_loss_rises_with_the_radius_and_with_the_steps(trained):
    data, _, network, pixels, labels = trained

    def loss(**knobs):
        found = Ascent(network, PGD(random_start=False, **knobs), data, FP32)(pixels, labels)
        return float(cross_entropy(pixel_logits(network, data, found), labels))

    by_eps = [loss(eps=eps / 255, step=eps / 4 / 255, steps=6) for eps in (0, 2, 4, 8, 16)]
    by_steps = [loss(eps=16 / 255, step=2 / 255, steps=steps) for steps in (1, 2, 4, 8)]
    assert by_eps == sorted(by_eps)
    assert by_steps == sorted(by_steps)
    assert by_eps[-1] > 1.2 * by_eps[0]


def test_draws_decide_the_start(trained):
    data, _, network, pixels, labels = trained
    attack = Ascent(network, SHORT, data, FP32)
    one, same, other = (attack(pixels, labels, draws(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(trained, training):
    data, _, network, pixels, labels = trained
    network.train(training)
    network.head.bias.requires_grad_(False)
    before = module_arrays(network)
    Ascent(network, SHORT, data, FP32)(pixels, labels, draws())
    assert all(part.training is training for part in network.modules())
    assert not network.head.bias.requires_grad
    assert network.head.weight.requires_grad
    assert all(weight.grad is None for weight in network.parameters())
    assert digest_of(module_arrays(network), 0) == digest_of(before, 0)


def test_in_training_mode_running_statistics_move(trained):
    data, _, network, pixels, labels = trained
    before = module_arrays(network)
    by_batch = Ascent(network, FGSM, data, FP32, "train")(pixels[:16], labels[:16])
    after = module_arrays(network)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all("running" in name or "num_batches" in name for name in changed)
    assert not torch.equal(by_batch, Ascent(network, FGSM, data, FP32)(pixels[:16], labels[:16]))


@pytest.mark.parametrize("failing", [True, False])
def test_one_forward_and_one_backward_pass_per_step_and_no_gradient_of_weights(trained, failing):
    data, _, network, pixels, labels = trained
    passes = {"forward": 0, "backward": 0}

    def count(name):
        passes[name] += 1
        if failing and passes["forward"] == 2:
            raise KeyboardInterrupt

    network.register_forward_pre_hook(lambda *_: count("forward"))
    network.head.register_full_backward_hook(lambda *_: count("backward"))
    attack = Ascent(network, FGSM, data, FP32)
    if failing:
        with pytest.raises(KeyboardInterrupt):
            attack(pixels, labels)
        assert all(weight.requires_grad for weight in network.parameters())
        return
    attack(pixels, labels)
    assert passes == {"forward": 3, "backward": 3}


def train(stage, data, subset, model, numerics=FP32, seed=5, **extra):
    inputs = {"data": data, "subset": subset, "model": model}
    return stage.run(Context(seed=5, numerics=numerics), **inputs)


@pytest.mark.slow
@pytest.mark.parametrize("numerics", [FP32, BF16])
def test_trained_on_attacks_a_network_withstands_them(make_set, everything, tiny, numerics):
    def faint(count, seed):
        data = make_set(count, seed=seed)
        return replace(data, images=data.images - np.uint8(120) * (data.images >= 150))

    data = faint(128, 0)
    recipe = {"epochs": 8, "batch_size": 16, "optimizer": "adam", "lr": 0.02, "augment": "none"}
    pgd = PGD(eps=16 / 255, step=8 / 255, steps=3)
    robust = AdversarialTraining(**recipe, pgd=pgd, schedule="cosine")
    inputs = {"model": tiny, "clean": faint(96, 1)}
    measured = {}
    for name, stage in {"robust": robust, "natural": robust.natural()}.items():
        classifier = train(stage, data, everything(data), tiny, numerics)
        evaluate = Evaluate(robust="pgd", pgd=pgd)
        measured[name] = evaluate.run(Context(numerics=numerics), **{**inputs, "classifier": classifier}).info
    assert measured["robust"]["acc"] > 0.85
    assert measured["robust"]["robust_acc"] > measured["natural"]["robust_acc"] + 0.1


def test_a_ball_of_radius_zero_is_natural_training(make_set, everything, tiny):
    """Without a random start nothing else is drawn; pixels are normalised in another order only."""
    data = make_set(40)
    still = PGD(eps=0, steps=1, random_start=False)
    stage = AdversarialTraining(epochs=1, batch_size=16, lr=0.01, pgd=still)
    adversarial = train(stage, data, everything(data), tiny)
    natural = train(stage.natural(), data, everything(data), tiny)
    for name, value in natural.arrays.items():
        np.testing.assert_allclose(adversarial.arrays[name], value, rtol=1e-3, atol=1e-4)


def slow_training(stage, data, model, seed):
    """As the papers write it, a batch at a time: attack in pixels, then step on what was found."""
    network = new_network(model, data, seed, FP32)
    optimizer = torch.optim.SGD(
        network.parameters(), stage.lr, stage.momentum, weight_decay=stage.weight_decay
    )
    mean, std = (torch.tensor(each)[:, None, None] for each in (data.mean, data.std))
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255
    labels, pgd = torch.from_numpy(data.labels), stage.pgd
    for epoch in range(stage.epochs):
        order = torch.randperm(len(labels), generator=generator(seed, "order", epoch))
        start = generator(seed, "augment", epoch)
        for rows in order.split(stage.batch_size):
            clean = images[rows]
            x = (clean + pgd.eps * (2 * torch.rand(clean.shape, generator=start) - 1)).clamp(0, 1)
            network.train(stage.attack_bn == "train")
            for _ in range(pgd.steps):
                x = x.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(cross_entropy(network((x - mean) / std), labels[rows]), x)
                x = x.detach() + pgd.step * gradient.sign()
                x = torch.minimum(torch.maximum(x, clean - pgd.eps), clean + pgd.eps).clamp(0, 1)
            network.train()
            optimizer.zero_grad()
            cross_entropy(network((x - mean) / std), labels[rows]).backward()
            optimizer.step()
    return module_arrays(network)


@pytest.mark.slow
@pytest.mark.parametrize("attack_bn", ["eval", "train"])
def test_training_is_the_papers(make_set, everything, tiny, attack_bn):
    data = make_set(24)
    pgd = PGD(eps=16 / 255, step=6 / 255, steps=2)
    knobs = {"epochs": 2, "batch_size": 8, "lr": 0.01, "schedule": "constant", "augment": "none", "pgd": pgd}
    stage = AdversarialTraining(**knobs, attack_bn=attack_bn)
    expected = slow_training(stage, data, tiny, seed=5)
    found = train(stage, data, everything(data), tiny).arrays
    found = {name: value for name, value in found.items() if name != "trace.losses"}
    other = {"eval": "train", "train": "eval"}[attack_bn]
    for wrong in ({"attack_bn": other}, {"pgd": PGD(eps=0)}):
        far = slow_training(stage.model_copy(update=wrong), data, tiny, seed=5)
        assert distance(far, expected) > 1e-2
    assert distance(found, expected) < 1e-4


def distance(one, other):
    """Return the largest difference of two networks' weights and running statistics."""
    assert one.keys() == other.keys()
    names = [name for name in one if "num_batches" not in name]
    return max(float(np.abs(one[name] - other[name]).max()) for name in names)


@pytest.mark.parametrize("numerics", [FP32, BF16])
@pytest.mark.parametrize("attack_bn", ["eval", "train"])
def test_repeats_and_resumes_bit_for_bit(make_set, everything, tiny, memory, numerics, attack_bn):
    data = make_set(24)
    stage = AdversarialTraining(epochs=3, batch_size=8, lr=0.01, pgd=SHORT, attack_bn=attack_bn)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    whole = stage.run(Context(seed=5, numerics=numerics), **inputs)
    ctx = Context(seed=5, numerics=numerics, checkpoint=memory(due_after=[2]))
    steps = stage.steps(ctx, **inputs)
    assert [next(steps).epoch, next(steps).epoch] == [1, 2]
    steps.close()
    torch.manual_seed(9)
    resumed = stage.run(ctx, **inputs)
    assert digest_of(resumed.arrays, resumed.info) == digest_of(whole.arrays, whole.info)
    assert whole.info == {"epochs": 3, "samples": 24}


def test_streamed_images_and_single_samples_train(make_set, everything, tiny, stream):
    data = make_set(20)
    stage = AdversarialTraining(epochs=1, batch_size=8, pgd=SHORT)
    streamed = replace(data, images=stream(data.images))
    assert train(stage, streamed, everything(data), tiny).info["samples"] == 20
    assert train(stage, data, everything(data, [3]), tiny).info["samples"] == 1
    with pytest.raises(Diverged, match="subset is empty"):
        train(stage, data, everything(data, []), tiny)


def test_the_natural_baseline_keeps_the_recipe():
    stage = AdversarialTraining(epochs=7, lr=0.03, milestones=(0.2,), weight_decay=1e-3)
    assert type(stage.natural()) is Supervised
    assert stage.natural() == Supervised(epochs=7, lr=0.03, milestones=(0.2,), weight_decay=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_robust_accuracy_is_the_accuracy_on_attacked_images(trained, tiny, stream, streamed):
    data, weights, network, pixels, labels = trained
    found = slow_pgd(network, pixels, labels, FGSM, data, torch.zeros_like(pixels))
    expected = pixel_logits(network, data, found).argmax(1).numpy()
    seen = replace(data, images=stream(data.images)) if streamed else data
    predicted = robust_predictions(network.train(), seen, FGSM, 0, BF16)
    assert np.count_nonzero(predicted != expected) <= 1
    assert network.training
    stage, ctx = Evaluate(robust="pgd", pgd=FGSM), Context(numerics=FP32)
    inputs = {"classifier": weights, "model": tiny, "clean": seen}
    info = stage.run(ctx, **inputs).info
    assert info["robust_acc"] == np.mean(predicted == data.labels)
    assert info["robust_acc"] < info["acc"]
    assert "robust_acc" not in Evaluate().run(ctx, **inputs).info


def test_robust_accuracy_of_no_images_is_left_out(make_set, tiny):
    data = make_set(4)
    weights = Artefact(module_arrays(new_network(tiny, data, 1, FP32)))
    nothing = replace(data, images=data.images[:0], labels=data.labels[:0])
    inputs = {"classifier": weights, "model": tiny, "clean": nothing}
    assert Evaluate(robust="pgd").run(Context(numerics=FP32), **inputs).info == {
        "n_clean": 0,
        "n_triggered": 0,
    }


def test_lengths_may_be_written_as_fractions():
    assert PGD(eps="4/255", step="1/255") == PGD(eps=4 / 255, step=1 / 255)
    found, faults = check(PGD, {"eps": "2/255"}, "pgd")
    assert not faults
    assert found == PGD(eps=2 / 255)


@pytest.mark.parametrize("wrong", [8, -0.1, "8", "8/0", "a/b", "510/255", True])
def test_lengths_are_checked(wrong):
    found, faults = check(PGD, {"eps": wrong}, "pgd")
    assert found is None
    assert [(fault.path, fault.expected) for fault in faults] == [("eps", "expected a number from 0 to 1")]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"step": 2.0}, {"restarts": 1}])
def test_knobs_are_checked(wrong):
    with pytest.raises(ValidationError):
        PGD(**wrong)

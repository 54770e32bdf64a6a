"""Attacks whose trigger a network makes for each image: ISSBA and Dynamic."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch
from torchvision import transforms

import bdtune
from bdtune.attacks.dynamic import networks as iab
from bdtune.attacks.dynamic.pattern import _Step
from bdtune.attacks.dynamic.stages import MaskTraining, PatternRecipe, new_generator, partners
from bdtune.attacks.issba.networks import Decoder, Encoder, ssim
from bdtune.attacks.issba.stages import SecretCoder, SecretImages, coders
from bdtune.engine.execute import Executor
from bdtune.engine.stage import Context
from bdtune.errors import UserError
from bdtune.plugins.data import ImageSet
from bdtune.poisoning.clean_sources import CleanTest
from bdtune.poisoning.train_sources import FitSet
from bdtune.poisoning.triggered_sources import CoverTest, TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.testing.small import NUMERICS, equipped, merged, quick, shown, store
from bdtune.training.loop import make_optimizer
from bdtune.training.weights import load_module, load_optimizer, optimizers_arrays
from tests.doubles import Memory
from tests.trained import upstream

N, SIDE = 64, 16
NAMES = ("issba", "dynamic")


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    smooth = generator.integers(40, 200, (N, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (smooth + generator.integers(0, 20, (N, SIDE, SIDE, 3))).astype(np.uint8)


def attack(name, **knobs):
    cls = type(bdtune.attack(name))
    return cls(**merged(quick(cls), knobs))


@pytest.mark.parametrize("name", NAMES)
def test_training_and_test_rows_of_one_image_look_the_same(name, images):
    made = equipped(attack(name, rate=0.5), images)
    plan = made.plan(np.arange(N) % 4, seed=0)
    stamped = made.apply(images, np.arange(N), plan)[plan.poison_ids]
    assert np.array_equal(stamped, made.trigger(images, np.arange(N))[plan.poison_ids])
    changes = (stamped.astype(int) - images[plan.poison_ids]).reshape(len(stamped), -1)
    assert len(np.unique(changes, axis=0)) == len(stamped)  # a trigger of its own for each image


@pytest.mark.parametrize("name", NAMES)
def test_each_split_depends_on_its_own_rendering_alone(name, images):
    knobs = {"dataset": shown(images, np.arange(N) % 4), "attack": attack(name), "numerics": NUMERICS}
    fit, test = FitSet(**knobs).upstream, TriggeredTest(**knobs).upstream
    assert (list(fit), list(test)) == (["train"], ["test"])
    assert isinstance(test["test"].inputs["data"], CleanTest)
    shared = {node.recipe for node in fit["train"].walk()} & {node.recipe for node in test["test"].walk()}
    assert shared == {node.recipe for node in test["test"].walk()} - {test["test"].recipe}


@pytest.mark.parametrize("name", NAMES)
def test_one_rendering_for_all_rates_and_seeds(name, images):
    data = shown(images, np.arange(N) % 4)
    recipes = {
        FitSet(dataset=data, attack=attack(name, rate=rate), seed=seed, numerics=NUMERICS)
        .upstream["train"]
        .recipe
        for rate in (0.05, 0.5)
        for seed in (0, 1)
    }
    assert len(recipes) == 1
    other = upstream(attack(name, trigger_seed=1), images)["train"].recipe
    assert other not in recipes


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_the_change(name, images):
    made = equipped(attack(name), images)
    info = made.artefact("test").info
    change = np.abs(made.artefact("test").arrays["images"].astype(int) - images)
    assert info["largest_change"] == change.max()
    assert info["mean_change"] == pytest.approx(change.mean(), rel=1e-6)
    psnr = 10 * np.log10(255**2 / (change.astype(float) ** 2).mean((1, 2, 3)))
    assert info["psnr"] == pytest.approx(psnr.mean(), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_sides_that_cannot_be_halved_are_refused(name):
    odd = np.zeros((20, 20, 20, 3), np.uint8)
    assert attack(name).check_image((20, 20, 3))[0].got.startswith("20x20")
    assert attack(name).check_image((32, 32, 3)) == []
    with pytest.raises(UserError, match="sides"):
        equipped(attack(name), odd)


def test_too_little_memory_is_said(images, monkeypatch):
    free = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    data = CleanTest(dataset=shown(images, np.arange(N) % 4)).load(InProcess(pipeline="resident"), {})
    with pytest.raises(UserError, match=r"kept for every row, which needs 0\.0 GiB"):
        SecretImages(secret=(1, 0)).run(Context(numerics=NUMERICS), data=data)


# --- ISSBA --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_secret_is_learnt_before_it_is_hidden(images):
    """Four bits in a few hundred steps: read back, and ever less visible once that counts."""
    coder = {
        "epochs": 100,
        "secret_epochs": 80,
        "lr": 3e-3,
        "secret_size": 4,
        "channels": 8,
        "batch_size": 16,
    }
    made = equipped(bdtune.attack("issba", coder=coder), images)
    node = upstream(bdtune.attack("issba", coder=coder), images)["train"]
    artefact = made_of(node, "coder")
    rows = artefact.curve
    assert rows[79]["bit_acc"] > 0.9
    assert rows[-1]["loss"] < rows[80]["loss"] / 2
    _, decoder = coders(node.inputs["coder"].stage, (SIDE, SIDE, 3))
    state = {k.removeprefix("decoder."): torch.from_numpy(v) for k, v in artefact.arrays.items()}
    decoder.load_state_dict({k: v for k, v in state.items() if not k.startswith("encoder.")})
    hidden = torch.from_numpy(made.artefact("test").arrays["images"]).permute(0, 3, 1, 2) / 255
    secret = torch.tensor(bdtune.attack("issba", coder=coder).bits)
    read = (decoder(hidden) > 0).long()
    assert (read == secret).float().mean() > 0.9


def test_by_default_the_residuals_mean_square_decides_how_visible_a_secret_is():
    """At 30 dB, where the authors' loss ends, no other term may weigh as much."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(8, 3, SIDE, SIDE, generator=generator) * 0.6 + 0.2
    residual = torch.randn(clean.shape, generator=generator) * 10 ** (-30 / 20)
    visible = SecretCoder()._visible(clean, residual, (clean + residual).clamp(0, 1))
    assert visible.item() == pytest.approx(2 * residual.square().mean().item(), rel=0.1)
    assert visible < SecretCoder(perceptual_weight=1.5)._visible(clean, residual, clean + residual) / 4


def test_a_residual_can_be_made_stronger_without_training_again(images):
    """The coder is shared; PSNR falls by 20 log10 of the factor, up to rounding and clipping."""
    plain, strong = (attack("issba", strength=strength) for strength in (0.02, 0.08))
    coders_ = [upstream(each, images)["test"].inputs["coder"].recipe for each in (plain, strong)]
    assert coders_[0] == coders_[1]
    change = [equipped(each, images).artefact("test").info["mean_change"] for each in (plain, strong)]
    assert change[1] == pytest.approx(4 * change[0], rel=0.2)


def test_the_secret_follows_the_trigger_seed():
    secrets = {bdtune.attack("issba", trigger_seed=seed).bits for seed in range(4)}
    assert len(secrets) == 4
    assert all(len(secret) == 20 and set(secret) <= {0, 1} for secret in secrets)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_shapes_of_the_coders(side):
    secret, images = torch.ones(2, 20), torch.rand(2, 3, side, side)
    encoder, decoder = Encoder(20, (side, side, 3), 4), Decoder(20, (side, side, 3), 4)
    assert encoder(secret, images).shape == images.shape
    assert decoder(images).shape == (2, 20)


def test_ssim_against_a_plain_version():
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 13, 14)), generator.random((2, 13, 14))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    found = []
    for x, y in zip(first, second, strict=True):
        for i in range(3):
            for j in range(4):
                a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
                mu, nu = (window * a).sum(), (window * b).sum()
                var, war = (window * (a - mu) ** 2).sum(), (window * (b - nu) ** 2).sum()
                cov = (window * (a - mu) * (b - nu)).sum()
                above = (2 * mu * nu + 1e-4) * (2 * cov + 9e-4)
                found.append(above / ((mu**2 + nu**2 + 1e-4) * (var + war + 9e-4)))
    both = (torch.from_numpy(each)[None] for each in (first, second))
    assert ssim(*both).item() == pytest.approx(np.mean(found), abs=1e-9)
    same = torch.rand(1, 3, 16, 16)
    assert ssim(same, same).item() == pytest.approx(1.0, abs=1e-5)


def test_a_coder_goes_on_where_it_was_stopped(images):
    data = FitSet(dataset=shown(images, np.arange(N) % 4)).load(InProcess(), {})
    stage = SecretCoder(epochs=4, channels=4, batch_size=16)
    whole = stage.run(Context(seed=1, numerics=NUMERICS), data=data)
    slot = Memory(due_after=[2])
    steps = stage.steps(Context(seed=1, numerics=NUMERICS, checkpoint=slot), data=data)
    for _ in range(2):
        next(steps)
    steps.close()
    resumed = stage.run(Context(seed=1, numerics=NUMERICS, checkpoint=slot), data=data)
    assert resumed.info == whole.info
    assert all(np.array_equal(resumed.arrays[name], whole.arrays[name]) for name in whole.arrays)


# --- Dynamic ------------------------------------------------------------------------------------------------


def test_cover_rows_carry_their_partners_trigger(images):
    made = equipped(attack("dynamic", rate=0.25, cover_rate=0.25), images)
    plan = made.plan(np.arange(N) % 4, seed=0)
    assert len(plan.cover_ids) == 16
    stamped = made.apply(images, np.arange(N), plan)
    assert np.array_equal(stamped[plan.cover_ids], made.artefact("cross").arrays["images"][plan.cover_ids])
    assert not np.array_equal(
        made.artefact("cross").arrays["images"], made.artefact("train").arrays["images"]
    )
    assert (plan.labels[plan.cover_ids] == plan.cover_ids % 4).all()
    without = FitSet(dataset=shown(images, np.arange(N) % 4), attack=attack("dynamic"), numerics=NUMERICS)
    assert not {"cross", "cross_test"} & set(without.upstream)


def test_accuracy_is_also_measured_under_the_triggers_of_other_test_images(images):
    dataset = shown(images, np.arange(N) % 4)
    made = attack("dynamic", cover_rate=0.1)
    assert made.covers_test
    assert not attack("dynamic").covers_test
    source = CoverTest(dataset=dataset, attack=made, numerics=NUMERICS)
    assert "cross" not in source.upstream
    results = {name: Executor(store(), InProcess()).compute(node) for name, node in source.upstream.items()}
    covered = source.load(InProcess(), results)
    assert np.array_equal(covered.images, results["cross_test"].arrays["images"])
    assert not np.array_equal(covered.images, results["test"].arrays["images"])
    assert np.array_equal(covered.labels, np.arange(N) % 4)


def test_a_cross_trigger_is_made_of_the_partner_alone(images):
    """What is added where the mask is 1 is the partner's pattern, whatever image it is put on."""
    made = equipped(attack("dynamic", cover_rate=0.1), images)
    node = upstream(attack("dynamic", cover_rate=0.1), images)["cross"]
    partner = partners(N, node.stage.partner_seed)
    data = node.inputs["data"].load(InProcess(), {})
    weights = {name: made_of(node, name) for name in ("masks", "patterns")}
    stamp = node.stage.stamp(Context(seed=node.seed, numerics=NUMERICS), data=data, **weights)
    black, white = torch.zeros(N, 3, SIDE, SIDE), torch.ones(N, 3, SIDE, SIDE)
    with torch.no_grad():
        transparency = stamp(white, np.arange(N)) - stamp(black, np.arange(N))  # 1 - mask, of the partner
        moved = stamp(white, partner) - stamp(black, partner)
    assert torch.allclose(transparency[partner], moved)
    assert made.artefact("cross").arrays["images"].shape == images.shape


def made_of(node, name):
    return Executor(store(), InProcess()).compute(node.inputs[name])


def test_partners_go_once_around():
    partner = partners(50, 3)
    assert sorted(partner) == list(range(50))
    seen, at = set(), 0
    while at not in seen:
        seen.add(at)
        at = partner[at]
    assert len(seen) == 50


@pytest.mark.slow
def test_both_generators_learn(images):
    masks = {"epochs": 8, "batch_size": 16}
    patterns = {"epochs": 8, "batch_size": 16, "poison_share": 0.25}
    knobs = {"masks": masks, "patterns": patterns, "widths": (8, 8)}
    made = upstream(attack("dynamic", **knobs), images)["train"].inputs
    weights = made_of(upstream(attack("dynamic", **knobs), images)["train"], "masks")
    assert weights.curve[-1]["loss"] < weights.curve[0]["loss"]
    found = made_of(upstream(attack("dynamic", **knobs), images)["train"], "patterns")
    assert set(found.info) == {"epochs", "acc", "asr", "cross_acc"}
    assert found.curve[-1]["loss"] < found.curve[0]["loss"]
    assert made["patterns"].inputs["masks"].recipe == made["masks"].recipe


def test_mask_and_stamp():
    generator = torch.nn.Identity()
    assert iab.mask_of(generator, torch.tensor([0.0, 0.5, 1.0])).tolist() == pytest.approx([0, 0.5, 1])
    planes, pattern = torch.full((1, 3, 2, 2), 0.2), torch.full((1, 3, 2, 2), 0.8)
    mask = torch.tensor([[0.0, 1.0], [0.5, 0.0]])[None, None]
    assert torch.allclose(iab.stamped(planes, mask, pattern)[0, 0], torch.tensor([[0.2, 0.8], [0.5, 0.2]]))


def test_diversity_rewards_different_triggers_and_survives_equal_ones():
    seen, other = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    made = torch.rand(4, 1, 8, 8, requires_grad=True)
    near, far = (iab.diversity(seen, other, made, made.detach() + shift) for shift in (0.01, 0.5))
    assert far < near
    iab.diversity(seen, other, made, made.detach()).backward()
    assert made.grad.isfinite().all()


def test_patterns_are_compared_normalised_as_the_images_are():
    """As in the authors' code; as they are, the term would weigh 1 / std times as much."""
    data = ImageSet(np.zeros((8, SIDE, SIDE, 3), np.uint8), np.zeros(8, np.int64), 4, (0.5,) * 3, (0.25,) * 3)
    generator = torch.Generator().manual_seed(0)
    planes, others = (torch.rand(8, 3, SIDE, SIDE, generator=generator) for _ in range(2))
    step = _Step(
        masks=torch.nn.Identity(),
        patterns=lambda seen: (seen * 0.1 + 0.5).clamp(0, 1),
        classifier=lambda seen: torch.zeros(len(seen), 4),
        data=data,
        recipe=PatternRecipe(poison_share=0.5, cross_share=0.5, diversity_weight=2.0),
        target=0,
    )
    loss, _ = step(planes, torch.zeros(8, dtype=torch.long), others)
    own, other = ((each - 0.5) / 0.25 for each in (planes[:4], others[4:]))
    made, made_other = ((each * 0.1 + 0.5 - 0.5) / 0.25 for each in (own, other))
    rms = [(a - b).square().mean((1, 2, 3)).sqrt() for a, b in ((own, other), (made, made_other))]
    assert loss.item() == pytest.approx(np.log(4) + 2.0 * (rms[0] / rms[1]).mean().item(), rel=1e-5)


def test_generators_of_backdoorbench_end_in_tanh_twice():
    body = torch.nn.Identity()
    for twice, ends in ((False, (0.0, 1.0)), (True, (0.1192, 0.8808))):
        generator = iab.Generator(3, 3, (4,), twice=twice)
        generator.body = body
        assert generator(torch.tensor([-50.0, 50.0])).tolist() == pytest.approx(ends, abs=1e-4)


def test_backdoorbench_stores_what_was_stamped_as_the_network_sees_it(images):
    """Byte for byte what torchvision's normalisations and `ToPILImage` make of the same networks' outputs."""
    made = attack("dynamic", dialect="backdoorbench", cover_rate=0.1)
    nodes = upstream(made, images)
    data = nodes["train"].inputs["data"].load(InProcess(), {})
    mean, std = data.mean, data.std
    seen = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    undone = [transforms.Normalize([0.0] * 3, [1 / each for each in std])]
    undone += [transforms.Normalize([-each for each in mean], [1.0] * 3)]
    pixels = torch.stack([seen(image) for image in images]).to(memory_format=torch.channels_last)
    rendered = equipped(made, images)
    partner = partners(N, made.trigger_seed)
    for name, others in (("train", pixels), ("cross", pixels[torch.from_numpy(partner)])):
        masks, patterns = (generator_of(nodes[name], data, part) for part in ("masks", "patterns"))
        with torch.inference_mode():
            pattern = transforms.Normalize(mean, std)(patterns(others))
            stamped = pixels + (pattern - pixels) * torch.tanh(masks(others) * 20 - 10).div(2).add(0.5)
        stored = [np.asarray(transforms.ToPILImage()(image)) for image in transforms.Compose(undone)(stamped)]
        assert np.array_equal(rendered.artefact(name).arrays["images"], np.stack(stored))


def generator_of(node, data, part):
    """Return a trained generator of the input-aware attack, by the name of its artefact."""
    channels = {"masks": 1, "patterns": 3}[part]
    network = new_generator(node.stage, data, channels, Context(numerics=NUMERICS)).eval()
    load_module(network, made_of(node, part).arrays, f"{part.removesuffix('s')}.")
    return network


def test_two_optimizers_resume():
    def both():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)]
        kinds = ("sgd", "adam")
        parts = [make_optimizer(x.parameters(), kind, 0.1) for x, kind in zip(layers, kinds, strict=True)]
        return torch.nn.Sequential(*layers), dict(zip(kinds, parts, strict=True))

    def step(network, parts):
        network.zero_grad()
        network(torch.ones(2, 3)).square().sum().backward()
        for part in parts.values():
            part.step()

    first, parts = both()
    step(first, parts)
    second, again = both()
    second.load_state_dict(first.state_dict())
    for name, optimizer in again.items():
        load_optimizer(optimizer, optimizers_arrays(parts), f"optimizer.{name}.")
    for network, of in ((first, parts), (second, again)):
        step(network, of)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_masks_go_on_where_they_were_stopped(images):
    data = FitSet(dataset=shown(images, np.arange(N) % 4)).load(InProcess(), {})
    stage = MaskTraining(widths=(4, 4), recipe={"epochs": 3, "batch_size": 16})
    whole = stage.run(Context(seed=1, numerics=NUMERICS), data=data)
    slot = Memory(due_after=[1])
    steps = stage.steps(Context(seed=1, numerics=NUMERICS, checkpoint=slot), data=data)
    next(steps)
    steps.close()
    resumed = stage.run(Context(seed=1, numerics=NUMERICS, checkpoint=slot), data=data)
    assert all(np.array_equal(resumed.arrays[name], whole.arrays[name]) for name in whole.arrays)


def test_patterns_go_on_where_they_were_stopped(images):
    node = upstream(attack("dynamic"), images)["train"]
    stage = node.inputs["patterns"].stage.model_copy(
        update={"recipe": PatternRecipe(epochs=3, batch_size=16)}
    )
    data = FitSet(dataset=shown(images, np.arange(N) % 4)).load(InProcess(), {})
    inputs = {"data": data, "masks": made_of(node, "masks"), "model": bdtune.model("resnet18", width=4)}
    whole = stage.run(Context(seed=1, numerics=NUMERICS), **inputs)
    slot = Memory(due_after=[2])
    steps = stage.steps(Context(seed=1, numerics=NUMERICS, checkpoint=slot), **inputs)
    for _ in range(2):
        next(steps)
    steps.close()
    resumed = stage.run(Context(seed=1, numerics=NUMERICS, checkpoint=slot), **inputs)
    assert resumed.info == whole.info
    assert all(np.array_equal(resumed.arrays[name], whole.arrays[name]) for name in whole.arrays)

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

import bdtune
from bdtune.poisoning.patterns import noise, robot

IDS = np.arange(6)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def test_ratio_0_is_the_identity_and_1_the_pattern(images):
    assert np.array_equal(bdtune.attack("blend", ratio=0.0).trigger(images, IDS), images)
    picture = np.rint(robot(32, 32).colours * 255).astype(np.uint8)
    full = bdtune.attack("blend", ratio=1.0).trigger(images, IDS)
    assert (full == picture).all()


@pytest.mark.parametrize(("quantise", "bias"), [("round", 0.0), ("trunc", -0.5)])
def test_the_mix_and_its_rounding(images, quantise, bias):
    mixed = bdtune.attack("blend", ratio=0.2, pattern="noise", quantise=quantise).trigger(images, IDS)
    exact = 0.8 * images + 0.2 * 255.0 * noise(32, 32, 0).colours
    error = mixed - exact
    assert np.abs(error - bias).max() <= 0.5 + 1e-3
    assert error.mean() == pytest.approx(bias, abs=0.15)


@pytest.mark.parametrize(("side", "patch"), [(4, 1), (16, 2), (32, 3), (64, 6)])
def test_a_white_corner_is_mixed_in_and_no_more(side, patch):
    image = np.full((1, side, side, 3), 100, np.uint8)
    stamped = bdtune.attack("blend", pattern="patch", ratio=0.2).trigger(image, [0])[0]
    assert (stamped[-patch:, -patch:] == 131).all()
    assert (stamped == 131).sum() == 3 * patch**2
    assert (stamped == 100).sum() == 3 * (side**2 - patch**2)


def test_backdoorbench_has_no_white_corner():
    with pytest.raises(ValidationError, match="mixes whole pictures"):
        bdtune.attack("blend", pattern="patch", dialect="backdoorbench")


def test_training_and_test_ratio_are_separate(images):
    attack = bdtune.attack("blend", rate=0.5, include_target_class=True, ratio=0.1, test_ratio=0.3)
    plan = attack.plan(np.arange(6) % 2, seed=0)
    weak = attack.apply(images, IDS, plan)[plan.poison_ids].astype(int) - images[plan.poison_ids]
    strong = attack.trigger(images, IDS)[plan.poison_ids].astype(int) - images[plan.poison_ids]
    assert np.abs(strong).mean() == pytest.approx(3 * np.abs(weak).mean(), rel=0.05)
    assert "test_ratio" not in attack.identity("train")
    assert "test_ratio" in attack.identity("test")


def test_noise_is_fixed_by_the_trigger_seed_alone():
    assert np.array_equal(noise(8, 8, 3).colours, noise(8, 8, 3).colours)
    assert not np.array_equal(noise(8, 8, 3).colours, noise(8, 8, 4).colours)
    grey = noise(8, 8, 3, grey=True).colours
    assert np.ptp(grey, axis=-1).max() == 0


def test_per_sample_noise_differs_by_image_and_split(images):
    same = np.repeat(images[:1], 6, axis=0)
    attack = bdtune.attack("blend", pattern="noise", per_sample=True, grey=True, rate=0.5, ratio=1.0)
    plan = attack.plan(np.arange(6) % 2, seed=0)
    trained = attack.apply(same, IDS, plan)[plan.poison_ids]
    triggered = attack.trigger(same, IDS)
    assert len(np.unique(triggered.reshape(6, -1), axis=0)) == 6
    assert not np.array_equal(trained[0], triggered[plan.poison_ids[0]])
    assert np.ptp(triggered.astype(int), axis=-1).max() == 0


@pytest.mark.parametrize("knobs", [{"grey": True}, {"per_sample": True}])
def test_noise_options_need_noise(knobs):
    with pytest.raises(ValidationError, match="needs pattern 'noise'"):
        bdtune.attack("blend", pattern="robot", **knobs)

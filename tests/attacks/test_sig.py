from __future__ import annotations

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.errors import ConfigError

LABELS = np.arange(1000) % 10
IDS = np.arange(4)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_grey_keeps_its_mean_and_has_six_waves(side):
    grey = np.full((1, side, side, 3), 128, np.uint8)
    striped = bdtune.attack("sig").trigger(grey, np.zeros(1))[0].astype(float)
    assert abs(striped.mean() - 128) <= 0.5
    assert (striped == striped[:1, :, :1]).all()  # the same in every row and channel
    spectrum = np.abs(np.fft.rfft(striped[0, :, 0] - 128))
    assert spectrum.argmax() == 6
    assert striped.max() <= 168
    assert striped.max() >= 164


def test_the_wave_of_the_paper(images):
    column = np.arange(32)
    exact = images + (20 * np.sin(2 * np.pi * column * 3 / 32))[:, None]
    striped = bdtune.attack("sig", amplitude=20.0, frequency=3.0).trigger(images, IDS)
    assert np.abs(striped - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-4


def test_bright_and_dark_pixels_are_clipped_and_do_not_wrap():
    for value in (0, 255):
        flat = np.full((1, 32, 32, 3), value, np.uint8)
        striped = bdtune.attack("sig").trigger(flat, np.zeros(1)).astype(int)
        assert np.abs(striped - value).max() == 40
        assert (striped == value).mean() > 0.4


def test_test_images_may_have_another_amplitude(images):
    attack = bdtune.attack("sig", test_amplitude=80.0)
    assert np.array_equal(
        attack.trigger(images, IDS), bdtune.attack("sig", amplitude=80.0).trigger(images, IDS)
    )
    assert "test_amplitude" not in attack.identity("train")


def test_only_the_target_class_is_touched_and_no_label_changes():
    plan = bdtune.attack("sig", rate=0.8, target=3).plan(LABELS, seed=0)
    assert len(plan.poison_ids) == 80
    assert set(LABELS[plan.poison_ids]) == {3}
    assert np.array_equal(plan.labels, LABELS)


def test_a_rate_beyond_the_class_is_an_error():
    """Class 1 of GTSRB is 5.7 % of the set: the 9.5 % of LfD cannot be a part of the whole set."""
    labels = np.repeat([0, 1, 2], [900, 57, 43])
    with pytest.raises(
        ConfigError, match=r"rate: expected at most the 57 images of class 1.*got 0.095 of 1000"
    ):
        bdtune.attack("sig", rate=0.095, rate_basis="dataset", target=1).plan(labels, seed=0)
    assert len(bdtune.attack("sig", rate=1.0, target=1).plan(labels, seed=0).poison_ids) == 57


@pytest.mark.parametrize(("knob", "value"), [("all_to_all", True), ("cover_rate", 0.1)])
def test_what_a_clean_label_attack_cannot_do(knob, value):
    spec, faults = parse_trial(
        {"dataset": "digits", "attack": {"name": "sig", knob: value}, "defense": "none"}, check_data=False
    )
    assert spec is None
    assert "a knob of sig" in faults[0].expected


def naive_backdoorbench(image, delta, f):
    """The toolkit's arithmetic pixel by pixel, from its description."""
    wave = np.zeros(image.shape, np.float32)
    for row in range(image.shape[0]):
        for column in range(image.shape[1]):
            wave[row, column] = delta * np.sin(2 * np.pi * column * f / image.shape[1])
    return np.uint8(np.clip(np.uint32(image) + wave, 0, 255))


@pytest.mark.parametrize("side", [32, 48])
def test_bytes_of_backdoorbench(side):
    generator = np.random.default_rng(side)
    images = generator.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    attack = bdtune.attack("sig", dialect="backdoorbench")
    theirs = np.stack([naive_backdoorbench(image, 40, 6) for image in images])
    assert np.array_equal(attack.trigger(images, np.arange(3)), theirs)


def test_rows_of_backdoorbench():
    attack = bdtune.attack("sig", dialect="backdoorbench", rate=0.05, target=2)
    plan = attack.plan(LABELS, seed=4)
    np.random.seed(4)
    theirs = np.random.choice(np.flatnonzero(LABELS == 2), 50, replace=False)
    assert np.array_equal(plan.poison_ids, np.sort(theirs))
    whole = bdtune.attack("sig", dialect="backdoorbench", rate=0.1).plan(LABELS, seed=0)
    assert np.array_equal(whole.poison_ids, np.flatnonzero(LABELS == 0))
    with pytest.raises(ConfigError, match="at most the 100 images of class 0"):
        bdtune.attack("sig", dialect="backdoorbench", rate=0.2).plan(LABELS, seed=0)
    with pytest.raises(ValueError, match="'canonical' or 'backdoorbench'"):
        bdtune.attack("sig", dialect="backdoorbox")

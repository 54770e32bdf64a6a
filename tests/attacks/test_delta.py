"""Perturbations that are added: the bytes, the built-in one, and files that users give."""

from __future__ import annotations

import re

import numpy as np
import pytest

import bdtune
from bdtune.attacks.delta import smooth
from bdtune.errors import ConfigError
from tests.patterned import digest, patterned

IDS = np.arange(64)


@pytest.fixture(scope="module")
def images():
    return patterned()


def with_file(folder, array, name="delta", **knobs):
    np.save(folder / "delta.npy", array)
    return bdtune.attack(name, delta_path=folder / "delta.npy", **knobs)


def test_published_digest_of_a_low_frequency_pattern(images, tmp_path):
    i, j, c = np.ogrid[:32, :32, :3]
    pattern = (((i * (31 - i) + j * (31 - j)) * (3 + c)) // 47).astype(np.uint8)
    assert digest(pattern) == "19b766de6b721dee"
    for dialect in ("canonical", "backdoorbench"):
        made = with_file(tmp_path, pattern, dialect=dialect).trigger(images, IDS)
        assert digest(made) == "69b0d2dd15103f2e"


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.int64])
@pytest.mark.parametrize("name", ["delta", "l2_invisible"])
def test_signed_values_are_added_and_truncated(images, tmp_path, kind, name):
    delta = np.random.default_rng(0).uniform(-255, 255, (32, 32, 3)).astype(kind)
    made = with_file(tmp_path, delta, name, quantise="trunc", rate=0.5)
    expected = np.trunc(np.clip(images + delta.astype(np.float64), 0, 255))
    assert np.array_equal(made.trigger(images, IDS), expected)
    plan = made.plan(IDS % 4, seed=0)
    assert np.array_equal(made.apply(images, IDS, plan)[plan.poison_ids], expected[plan.poison_ids])
    rounded = with_file(tmp_path, delta, name, quantise="round").trigger(images, IDS)
    assert np.array_equal(rounded, np.floor(np.clip(images + delta.astype(np.float64), 0, 255) + 0.5))


def test_one_channel_and_a_batch_axis_are_understood(images, tmp_path):
    delta = np.random.default_rng(0).integers(-20, 20, (32, 32))
    wanted = np.clip(images.astype(int) + delta[..., None], 0, 255)
    for array in (delta, delta[..., None], delta[None, ..., None]):
        assert np.array_equal(with_file(tmp_path, array).trigger(images, IDS), wanted)


def test_strengths_of_training_and_test(images, tmp_path):
    delta = np.full((32, 32, 3), 4.0)
    attack = with_file(tmp_path, delta, strength=2, test_strength=3, rate=0.5)
    assert np.array_equal(attack.trigger(images, IDS), np.clip(images.astype(int) + 12, 0, 255))
    plan = attack.plan(IDS % 4, seed=0)
    stamped = attack.apply(images, IDS, plan)[plan.poison_ids]
    assert np.array_equal(stamped, np.clip(images[plan.poison_ids].astype(int) + 8, 0, 255))
    assert "test_strength" not in attack.identity("train")
    assert attack.budget((32, 32, 3), "test").grey_levels == 12


def test_the_built_in_one_is_smooth_and_faint():
    delta = smooth(32, 32, 3)
    assert delta.min() == 0
    assert delta.max() == pytest.approx(25.5, abs=0.1)
    assert delta.mean() == pytest.approx(13.2, abs=0.1)
    power = np.abs(np.fft.fft2(delta[..., 0] - delta[..., 0].mean())) ** 2
    assert (
        power[:4, :4].sum() + power[-3:, :4].sum() + power[:4, -3:].sum() + power[-3:, -3:].sum()
        > 0.98 * power.sum()
    )


def test_the_content_enters_the_key_and_not_the_path(tmp_path):
    (tmp_path / "other").mkdir()
    one = with_file(tmp_path, np.full((32, 32, 3), 9))
    same = with_file(tmp_path / "other", np.full((32, 32, 3), 9))
    assert one.identity() == same.identity()
    assert str(tmp_path) not in str(one.identity())
    assert with_file(tmp_path, np.full((32, 32, 3), 8)).identity() != same.identity()


def test_a_given_perturbation_needs_no_surrogate_and_no_single_target(tmp_path):
    attack = with_file(tmp_path, np.full((32, 32, 3), 9), "l2_invisible", all_to_all=True)
    assert attack.artefacts(None) == {}
    assert attack.check(10, None, (32, 32, 3)) == []


@pytest.mark.parametrize("name", ["delta", "l2_invisible"])
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((16, 16, 3)) * 9, r"of the images' shape, \[32, 32, 3\], got .*of \[16, 16, 3\]"),
        (np.ones((32, 32, 4)) * 9, r"ints or floats \[H, W, 3\].*float64 \[32, 32, 4\]"),
        (np.ones(32), r"\[32\]"),
        (np.ones((32, 32, 3), bool), "bool"),
        (np.ones((32, 32, 3), complex), "complex"),
        (np.full((32, 32, 3), 256), "-255 to 255, got .* from 256"),
        (np.full((32, 32, 3), -255.5), "-255 to 255"),
        (np.full((32, 32, 3), np.nan), "-255 to 255"),
        (np.full((32, 32, 3), 0.2), "at most 0.2. A perturbation of pixels .* multiplied by 255"),
        (np.zeros((32, 32, 3), int), "at least one grey level"),
        (np.array([{}]), "npy array"),
        (None, "readable file"),
    ],
)
def test_files_that_cannot_be_used_are_told_when_planning(tmp_path, name, array, message):
    if array is not None:
        np.save(tmp_path / "delta.npy", array)
    attack = bdtune.attack(name, delta_path=tmp_path / "delta.npy")
    (problem,) = attack.check(10, None, (32, 32, 3))
    assert problem.path == "delta_path"
    assert re.search(message, str(problem)), problem
    if "shape" not in message:
        with pytest.raises(ConfigError):
            attack.plan(np.arange(100) % 10, seed=0)

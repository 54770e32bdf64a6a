from __future__ import annotations

import numpy as np
import pytest

import bdtune
from bdtune.errors import ConfigError
from bdtune.plugins import registry
from bdtune.plugins.presets import preset, presets

REQUIRED = [f"{paper}/{attack}" for paper in ("gssd", "aabl", "abl") for attack in ("badnets", "blend")]
REQUIRED += ["lfd/bn_g", "lfd/bn_w", "lfd/blend", "gssd/wanet", "aabl/wanet"]


@pytest.mark.parametrize("name", REQUIRED)
def test_each_papers_conventions(name):
    attack, knobs = preset("attacks", name)
    made = bdtune.attack(attack, **knobs)
    paper = name.partition("/")[0]
    assert made.rate == 0.1
    assert made.rate_basis == "dataset"
    assert made.target == (1 if paper == "lfd" else 0)
    assert made.include_target_class == (paper != "gssd")


@pytest.mark.parametrize(
    ("name", "poison", "cover"),
    [
        ("gssd/wanet", 5000, 0),
        ("aabl/wanet", 5000, 10_000),
        ("gssd/adap_blend", 500, 500),
        ("gssd/adap_patch", 500, 500),
        ("adap/blend", 150, 150),
        ("adap/patch", 150, 300),
        ("lfd/sig", 4000, 0),
        ("lfd/sig_literal", 400, 0),
        ("backdoorbench/badnets", 5000, 0),
        ("backdoorbench/blend", 5000, 0),
        ("backdoorbench/sig", 5000, 0),
        ("backdoorbench/wanet", 4688, 9376),
        ("backdoorbox/badnets", 2500, 0),
        ("backdoorbox/wanet", 5000, 10_000),
        ("backdoorbox/adap_patch", 500, 1000),
        ("cba/half", 4545, 22_725),
        ("abl/cba", 5000, 22_500),
        ("backdoorbench/lf", 5000, 0),
    ],
)
def test_numbers_of_rows_on_cifar10(name, poison, cover):
    attack, knobs = preset("attacks", name)
    plan = bdtune.attack(attack, **knobs).plan(np.arange(50_000) % 10, seed=0)
    assert (len(plan.poison_ids), len(plan.cover_ids)) == (poison, cover)


def test_composite_has_five_normal_and_five_mixed_rows_to_one_of_poison():
    for knobs in ({}, preset("attacks", "cba/half")[1]):
        plan = bdtune.attack("composite", **knobs).plan(np.arange(50_000) % 10, seed=0)
        poison, mixed = len(plan.poison_ids), len(plan.cover_ids)
        assert mixed == 5 * poison
        assert 50_000 - mixed - poison == pytest.approx(5 * poison, rel=1e-3)


def test_backdoorbox_blends_a_white_corner():
    image = np.full((1, 32, 32, 3), 101, np.uint8)
    image[0, 0, 0] = (0, 255, 7)
    attack, knobs = preset("attacks", "backdoorbox/blend")
    stamped = bdtune.attack(attack, **knobs).trigger(image, [0])[0]
    expected = image[0].copy()
    expected[29:, 29:] = int(0.8 * 101 + 0.2 * 255)
    assert np.array_equal(stamped, expected)


def test_every_preset_can_be_made():
    for attack, knobs in presets("attacks").values():
        bdtune.attack(attack, **knobs)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'lfd/bn_g'"):
        preset("attacks", "lfd/bng")


def test_the_result_is_a_copy():
    preset("attacks", "gssd/blend")[1]["ratio"] = 0.9
    assert preset("attacks", "gssd/blend")[1]["ratio"] == 0.1


@pytest.mark.parametrize("ask", [lambda: bdtune.attack("dfst"), lambda: preset("attacks", "abl/dfst")])
def test_a_known_attack_that_is_not_offered_says_why_and_what_to_do(ask):
    with pytest.raises(ConfigError, match=r"DFST .* is known, but not offered: its trigger .*name: record"):
        ask()


def test_what_is_not_offered_is_not_listed_and_nobody_has_its_names():
    for name, known in registry.not_offered("attacks").items():
        assert name not in registry.names("attacks")
        assert not set(known.presets) & set(presets("attacks"))
        assert not known.instead.endswith(".")
    assert registry.not_offered("models") == {}

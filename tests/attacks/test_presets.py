from __future__ import annotations

import pytest

import bdtune
from bdtune.attacks._presets import preset, presets
from bdtune.errors import ConfigError

REQUIRED = [f"{paper}/{attack}" for paper in ("gssd", "aabl", "abl") for attack in ("badnets", "blend")]


@pytest.mark.parametrize("name", [*REQUIRED, "lfd/bn_g", "lfd/bn_w", "lfd/blend"])
def test_each_papers_conventions(name):
    attack, knobs = preset(name)
    made = bdtune.attack(attack, **knobs)
    paper = name.partition("/")[0]
    assert made.rate == 0.1
    assert made.rate_basis == "dataset"
    assert made.target == (1 if paper == "lfd" else 0)
    assert made.include_target_class == (paper != "gssd")


def test_every_preset_can_be_made():
    for attack, knobs in presets().values():
        bdtune.attack(attack, **knobs)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'lfd/bn_g'"):
        preset("lfd/bng")


def test_the_result_is_a_copy():
    preset("gssd/blend")[1]["ratio"] = 0.9
    assert preset("gssd/blend")[1]["ratio"] == 0.1

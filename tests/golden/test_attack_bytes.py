"""The bytes and rows that other toolkits make of an input that a formula defines, by digest."""

from __future__ import annotations

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.errors import ConfigError
from bdtune.poisoning.dialects import chosen_by_numpy, shuffled_by_random, torch_uniform
from tests.patterned import digest, patterned

LABELS = np.arange(50_000) % 10
BOTH = ["backdoorbench", "backdoorbox"]


@pytest.fixture(scope="module")
def images():
    return patterned()


@pytest.fixture(scope="module")
def trigger(tmp_path_factory):
    i, j, c = np.ogrid[:32, :32, :3]
    picture = ((5 * i + 11 * j + 43 * c) % 256).astype(np.uint8)
    assert digest(picture) == "c99edcb2d21b7463"
    path = tmp_path_factory.mktemp("trigger") / "trigger.npy"
    np.save(path, picture)
    return path


def test_the_input(images):
    assert digest(images) == "2de2a706454090f7"


@pytest.mark.parametrize("dialect", ["canonical", *BOTH])
def test_white_patch(images, dialect):
    attack = bdtune.attack("badnets", dialect=dialect, pattern="square", inset=0)
    assert digest(attack.trigger(images, np.arange(64))) == "7334e0632aa84fac"


@pytest.mark.parametrize(
    ("dialect", "expected"), [("backdoorbench", "3461ffb9c3ccb467"), ("backdoorbox", "656811b3f3ea6da7")]
)
def test_blend(images, trigger, dialect, expected):
    attack = bdtune.attack("blend", dialect=dialect, ratio=0.2, pattern_path=trigger, rate=1.0)
    assert digest(attack.trigger(images, np.arange(64))) == expected
    plan = attack.plan(LABELS[:64], seed=0)
    assert digest(attack.apply(images, np.arange(64), plan)) == expected


@pytest.mark.parametrize(
    ("dialect", "first", "expected"),
    [
        ("backdoorbench", [14, 22, 24, 28, 64], "7580bdab922dd449"),
        ("backdoorbox", [6, 9, 12, 20, 37], "563adb8e508cda3b"),
    ],
)
@pytest.mark.parametrize("name", ["badnets", "blend"])
def test_poisoned_rows(name, dialect, first, expected):
    attack = bdtune.attack(name, dialect=dialect, rate=0.1)
    plan = attack.plan(LABELS, seed=0)
    assert plan.poison_ids.dtype == np.int64
    assert len(plan.poison_ids) == 5000
    assert plan.poison_ids[:5].tolist() == first
    assert digest(plan.poison_ids) == expected


def test_black_cells_of_backdoorbenchs_grid_file_are_1(images):
    attack = bdtune.attack("badnets", dialect="backdoorbench", pattern="checker")
    patch = attack.trigger(images, np.arange(64))[:, 29:, 29:]
    assert (patch == np.array([[255, 1, 255], [1, 255, 1], [255, 1, 255]])[..., None]).all()


def test_backdoorbench_takes_its_mask_channel_by_channel(tmp_path):
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[..., 0] = 9
    np.save(tmp_path / "red.npy", picture)
    attack = bdtune.attack("badnets", dialect="backdoorbench", pattern_path=tmp_path / "red.npy", size=4)
    changed = attack.trigger(np.full((1, 32, 32, 3), 50, np.uint8), np.zeros(1))[0, :4, :4]
    assert (changed == (9, 50, 50)).all()


def test_counts_are_rounded_as_each_toolkit_rounds_them():
    """0.29 of 100 is 28.999999999999996 in floating point; BackdoorBench rounds halves to even."""
    labels = np.arange(100) % 4
    counts = [
        len(bdtune.attack("badnets", dialect=dialect, rate=rate).plan(labels, seed=0).poison_ids)
        for rate in (0.29, 0.025, 0.035)
        for dialect in ("canonical", *BOTH)
    ]
    assert counts == [29, 29, 28, 2, 2, 2, 3, 4, 3]


def test_what_a_dialect_fixes_is_filled_in_and_cannot_be_contradicted():
    attack = bdtune.attack("badnets", dialect="backdoorbench")
    assert (attack.quantise, attack.rate_basis, attack.include_target_class) == ("trunc", "dataset", True)
    for wrong in ({"rate_basis": "non_target"}, {"opacity": 0.5}):
        with pytest.raises(ValueError, match="dialect 'backdoorbench' has"):
            bdtune.attack("badnets", dialect="backdoorbench", **wrong)
    with pytest.raises(ValueError, match="'canonical', 'backdoorbench' or 'backdoorbox'"):
        bdtune.attack("badnets", dialect="backdoorbnech")


@pytest.mark.parametrize(
    ("name", "knobs"),
    [("adap_patch", {"opacity": [0.1, 0.2, 0.3, 0.4]}), ("dynamic", {"widths": [4, 8]})],
)
def test_lists_in_a_file_are_understood_as_of_other_attacks(name, knobs):
    raw = {"dataset": "digits", "defense": "none", "attack": {"name": name, "rate": 0.1, **knobs}}
    spec, faults = parse_trial(raw)
    assert not faults
    assert all(getattr(spec.attack, knob) == tuple(values) for knob, values in knobs.items())


def test_dialects_can_be_an_axis_of_a_sweep():
    """A sweep changes single knobs of a trial in which all are written out."""
    written = bdtune.attack("blend").model_dump()
    for dialect in BOTH:
        assert bdtune.attack("blend", **{**written, "dialect": dialect}).quantise == "trunc"


def test_the_trials_seed_is_the_toolkits():
    assert bdtune.attack("badnets", dialect="backdoorbox").plan_seed(7) == 7
    assert bdtune.attack("badnets").plan_seed(7) != 7
    attack = bdtune.attack("badnets", dialect="backdoorbench")
    assert attack.plan_seed(2**32 - 1) == 2**32 - 1
    for take in (attack.plan_seed, lambda seed: attack.plan(LABELS, seed=seed)):
        with pytest.raises(ConfigError, match="seed: expected at most 4294967295"):
            take(2**32)
    for name, dialect in (("badnets", "backdoorbox"), ("wanet", "backdoorbench")):  # neither seeds NumPy's
        attack = bdtune.attack(name, dialect=dialect)
        assert attack.plan(LABELS, seed=2**32).seed == 2**32


def test_no_global_generator_is_touched():
    import random

    before = random.getstate(), np.random.get_state()[1].tobytes()
    for dialect in BOTH:
        bdtune.attack("blend", dialect=dialect).plan(LABELS[:100], seed=0)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before


def test_rebuilt_generators_are_those_of_the_libraries():
    import random

    import torch

    np.random.seed(5)
    assert np.array_equal(chosen_by_numpy(LABELS, 99, 5), np.random.choice(LABELS, 99, replace=False))
    random.seed(5)
    order = list(range(1000))
    random.shuffle(order)
    assert shuffled_by_random(np.arange(1000), 5).tolist() == order
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert np.array_equal(torch_uniform((1, 2, 4, 4), 5), torch.rand(1, 2, 4, 4).numpy())


@pytest.mark.parametrize(
    ("amplitude", "expected"),
    [
        (1.0, "9ce3595d289a5fc0"),
        (0.5, "b7921c996f4c0caf"),
        (0.3, "efe9dbc02f807dab"),
        (32 / 255, "e432883ac8ec28b9"),
    ],
)
def test_corners_of_backdoorbench(images, amplitude, expected):
    knobs = {"dialect": "backdoorbench", "surrogate": "none", "rate": 1.0}
    attack = bdtune.attack("label_consistent", amplitude=amplitude, **knobs)
    assert digest(attack.trigger(images, np.arange(64))) == expected
    plan = attack.plan(np.zeros(64, np.int64), seed=0)
    assert digest(attack.apply(images, np.arange(64), plan)) == expected


def test_corners_of_backdoorbench_at_another_size(images):
    attack = bdtune.attack("label_consistent", dialect="backdoorbench", amplitude=0.3, surrogate="none")
    large = images[:8].repeat(2, axis=1).repeat(2, axis=2)
    assert digest(attack.trigger(large, np.arange(8))) == "5c5fb240e8a4e3dc"


def test_corners_of_backdoorbox(images):
    attack = bdtune.attack("label_consistent", dialect="backdoorbox", surrogate="none")
    assert digest(attack.trigger(images, np.arange(64))) == "9ce3595d289a5fc0"
    with pytest.raises(ValueError, match="dialect 'backdoorbox' has amplitude"):
        bdtune.attack("label_consistent", dialect="backdoorbox", amplitude=0.5)


@pytest.mark.parametrize(
    ("amplitude", "frequency", "expected"),
    [(40, 6, "d320846c2c775bbd"), (20, 6, "d652f05f1280b9ae"), (30, 4, "aaec6af663f01754")],
)
def test_stripes_of_backdoorbench(images, amplitude, frequency, expected):
    knobs = {"amplitude": float(amplitude), "frequency": float(frequency)}
    attack = bdtune.attack("sig", dialect="backdoorbench", rate=0.1, **knobs)
    assert digest(attack.trigger(images, np.arange(64))) == expected


def test_sums_of_backdoorbench_wrap_around(images, trigger):
    attack = bdtune.attack("trojan", dialect="backdoorbench", pattern_path=trigger)
    assert digest(attack.trigger(images, np.arange(64))) == "a2fb032c040098a6"


def test_warp_of_backdoorbox_with_the_same_field(images, tmp_path):
    """Its float32 grid decides five of 196,608 values otherwise; images 2 to 10 have none of them."""
    number = np.arange(32).reshape(2, 4, 4)
    field = (((7 * number + number * number) % 23) / 11 - 1).astype(np.float32)
    np.save(tmp_path / "field.npy", field)
    attack = bdtune.attack("wanet", dialect="backdoorbox", control_field=tmp_path / "field.npy")
    warped = attack.trigger(images, np.arange(64))
    assert digest(warped[2:11]) == "135cb3fa064dce1e"
    assert abs(int(warped.sum()) - 25_062_515) <= 5


ROWS = [
    ("label_consistent", "backdoorbench", {"rate": 0.05}, 2500, [10, 20, 30, 40, 50], "dd4bac8fc4c33ca0"),
    (
        "label_consistent",
        "backdoorbox",
        {"rate": 0.25, "target": 2},
        1250,
        [72, 132, 222, 252, 292],
        "05f8acfe64c18792",
    ),
    ("issba", "backdoorbench", {"rate": 0.1}, 5000, [14, 22, 24, 28, 64], "7580bdab922dd449"),
    ("issba", "backdoorbox", {"rate": 0.05}, 2500, [6, 12, 58, 71, 80], "74b1943f1d8d3c14"),
    ("trojan", "backdoorbench", {"rate": 0.1}, 5000, [14, 22, 24, 28, 64], "7580bdab922dd449"),
    ("dynamic", "backdoorbench", {"rate": 0.1}, 4688, [0, 1, 2, 3, 4], "b951e6523edb526e"),
]


@pytest.mark.parametrize(("name", "dialect", "knobs", "count", "first", "expected"), ROWS)
def test_rows_of_attacks_that_train_something(name, dialect, knobs, count, first, expected):
    attack = bdtune.attack(name, dialect=dialect, **knobs)
    plan = attack.plan(LABELS, seed=0)
    assert len(plan.poison_ids) == count
    assert plan.poison_ids[:5].tolist() == first
    assert digest(plan.poison_ids) == expected


def test_cover_rows_of_backdoorbenchs_input_aware_attack():
    plan = bdtune.attack("dynamic", dialect="backdoorbench", rate=0.1, cover_rate=0.1).plan(LABELS, seed=0)
    assert digest(plan.cover_ids) == "fb6155e045bada55"

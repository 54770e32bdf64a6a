"""Every attack passes these by being there; tiny synthetic data, and tiny networks where it trains some."""

from __future__ import annotations

import ast
import inspect
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bdtune.errors import ConfigError
from bdtune.plugins import registry
from bdtune.plugins.budget import Budget
from bdtune.plugins.poison_plan import Role
from bdtune.plugins.presets import presets
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from tests.records import record_of
from tests.trained import equipped, is_trained, merged, quick

NAMES = registry.names("attacks")
PRESETS = [pytest.param(*preset, id=name, marks=pytest.mark.slow) for name, preset in presets().items()]
N, SIDE, CLASSES = 60, 16, 4


def make(name, knobs, images=None):
    """Return the attack, with what it trains on `images` where it trains something.

    Rates that would poison no row of the tiny data are raised, and those that would poison all of a class
    are lowered.
    """
    cls = registry.load("attacks", name)
    if name == "record":
        pixels = noise() if images is None else images
        both = (pixels, np.arange(len(pixels)) % CLASSES)
        attack = record_of(both, both, CLASSES)
        return attack if images is None else equipped(attack, images)
    knobs = {"rate": 0.5 if cls.clean_label else 0.2, **knobs}
    for rate, count in (("rate", "count"), ("cover_rate", "cover_count")):
        if count in knobs:
            knobs.pop(rate, None)
        elif rate in cls.model_fields:
            knobs[rate] = min(max(knobs.get(rate, 0.0), 0.1), 0.9)
    if not is_trained(cls):
        return cls(**knobs)
    attack = cls(**merged(knobs, quick(cls)))
    return attack if images is None else equipped(attack, images)


def covered(name):
    """Return the knobs that give an attack cover rows where it can have them."""
    fields = registry.load("attacks", name).model_fields
    return {knob: value for knob, value in {"cover_rate": 0.2, "cross_ratio": 0.3}.items() if knob in fields}


def noise():
    return np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def data():
    images = noise()
    images[:4] = np.array([0, 255, 128, 1], np.uint8)[:, None, None, None]
    images.flags.writeable = False
    return images, np.arange(N) % CLASSES


every_attack = pytest.mark.parametrize(
    ("name", "knobs"), [*(pytest.param(name, {}, id=name) for name in NAMES), *PRESETS]
)


@every_attack
def test_unplanned_rows_keep_their_bytes_and_the_input_its_own(name, knobs, data):
    images, labels = data
    attack, before = make(name, knobs, images), images.copy()
    plan = attack.plan(labels, seed=1, num_classes=CLASSES)
    stamped = attack.apply(images, np.arange(N), plan)
    assert stamped.dtype == np.uint8
    assert stamped.shape == images.shape
    assert np.array_equal(images, before)
    untouched = plan.role() == Role.CLEAN
    assert np.array_equal(stamped[untouched], images[untouched])
    assert not np.shares_memory(stamped, images)


@every_attack
def test_counts_roles_and_flags(name, knobs, data):
    _, labels = data
    attack = make(name, knobs)
    plan = attack.plan(labels, seed=1, num_classes=CLASSES)
    basis = {
        "dataset": N,
        "non_target": np.sum(labels != attack.target),
        "target_class": np.sum(labels == attack.target),
    }[attack.rate_basis]
    assert len(plan.poison_ids) == int(attack.rate * basis + 1e-9)
    assert len(plan.cover_ids) == int(attack.cover_fraction() * basis + 1e-9)
    assert not set(plan.poison_ids) & set(plan.cover_ids)
    assert np.array_equal(np.flatnonzero(plan.role() == Role.POISON), plan.poison_ids)
    assert np.array_equal(np.flatnonzero(plan.role() == Role.COVER), plan.cover_ids)
    assert np.array_equal(plan.is_triggered(), plan.role() > 0)
    assert np.array_equal(plan.is_relabelled(), plan.labels != labels)
    goals = labels if attack.clean_label else attack.test_labels(labels, CLASSES)
    assert np.array_equal(plan.labels[plan.poison_ids], goals[plan.poison_ids])
    kept = np.setdiff1d(np.arange(N), plan.poison_ids)
    assert np.array_equal(plan.labels[kept], labels[kept])


@pytest.mark.parametrize("name", [name for name in NAMES if name != "record"])
def test_counts_in_the_place_of_rates(name, data):
    _, labels = data
    plan = make(name, {"count": 7}).plan(labels, seed=1, num_classes=CLASSES)
    assert len(plan.poison_ids) == 7
    by_rate = make(name, {"rate": 0.5}).plan(labels, seed=1, num_classes=CLASSES)
    assert set(plan.poison_ids) <= set(by_rate.poison_ids)
    if "cover_count" in registry.load("attacks", name).model_fields:
        plan = make(name, {"count": 7, "cover_count": 9}).plan(labels, seed=1, num_classes=CLASSES)
        assert (len(plan.poison_ids), len(plan.cover_ids)) == (7, 9)
        with pytest.raises(ConfigError, match=r"cover_count: .* among the .* images .*got 7 poison and 60"):
            make(name, {"count": 7, "cover_count": N}).plan(labels, seed=1, num_classes=CLASSES)
    with pytest.raises(ConfigError, match=rf"count: expected at most the \d+ images .*, got {N + 1}$"):
        make(name, {"count": N + 1}).plan(labels, seed=1, num_classes=CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_attacks_that_relabel_choose_their_classes_and_the_others_say_why_not(name, data):
    _, labels = data
    cls = registry.load("attacks", name)
    if not issubclass(cls, DirtyLabelAttack):
        assert {"all_to_all", "source_classes"} <= set(cls.lacks)
        assert cls.clean_label or name in {"composite", "record"}
        return
    attack = make(name, {"source_classes": (1, 3)})
    plan = attack.plan(labels, seed=1, num_classes=CLASSES)
    assert set(labels[plan.poison_ids]) == {1, 3}
    assert set(plan.labels[plan.poison_ids]) == {attack.target}
    assert np.array_equal(attack.test_rows(labels, CLASSES), np.isin(labels, (1, 3)))
    everyone = make(name, {}).identity("test")
    assert attack.identity("test") == {**everyone, "source_classes": [1, 3]}
    if cls.aimed:
        with pytest.raises(ValidationError, match="no single target class, and "):
            make(name, {"all_to_all": True})
        return
    attack = make(name, {"all_to_all": True})
    plan = attack.plan(labels, seed=1, num_classes=CLASSES)
    assert np.array_equal(plan.labels[plan.poison_ids], (labels[plan.poison_ids] + 1) % CLASSES)
    assert np.array_equal(attack.test_labels(labels, CLASSES), (labels + 1) % CLASSES)
    assert attack.test_rows(labels, CLASSES).all()
    assert attack.single_target is None
    assert attack.asr_band <= 0.6


@every_attack
def test_who_may_be_poisoned(name, knobs, data):
    _, labels = data
    attack = make(name, knobs)
    classes = set()
    for seed in range(5):
        plan = attack.plan(labels, seed=seed, num_classes=CLASSES)
        classes |= set(labels[plan.poison_ids])
    if attack.clean_label:
        assert classes == {attack.target}
    elif attack.include_target_class:
        assert classes == set(range(CLASSES))
    else:
        assert classes == set(range(CLASSES)) - {attack.target}


@every_attack
def test_the_seed_decides_the_plan(name, knobs, data):
    _, labels = data
    attack = make(name, knobs)
    first, again, other = (attack.plan(labels, seed=seed, num_classes=CLASSES) for seed in (3, 3, 4))
    assert first.digest() == again.digest()
    if knobs.get("dialect") in getattr(attack, "batchwise", ()):
        pytest.skip("poisons the first rows of every batch")
    if name == "record":
        pytest.skip("poisons the rows that its folder names")
    assert not np.array_equal(first.poison_ids, other.poison_ids)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(range(24)), cuts=st.sets(st.integers(1, 23), max_size=4))
def test_same_bytes_for_any_order_and_batches(name, data, order, cuts):
    images, labels = (array[:24] for array in data)
    attack = make(name, {"rate": 0.5, **covered(name)}, images)
    plan = attack.plan(labels, seed=1, num_classes=CLASSES)
    ids = np.arange(24)
    whole = attack.apply(images, ids, plan), attack.trigger(images, ids)
    for part in np.split(np.array(order), sorted(cuts)):
        assert np.array_equal(attack.apply(images[part], part, plan), whole[0][part])
        assert np.array_equal(attack.trigger(images[part], part), whole[1][part])


@every_attack
def test_the_trigger_changes_every_test_image(name, knobs, data):
    images, _ = data
    attack = make(name, knobs, images)
    triggered = attack.trigger(images, np.arange(N))
    assert triggered.dtype == np.uint8
    same = [i for i in range(N) if np.array_equal(triggered[i], images[i])]
    if not attack.stamps_test:
        assert same == list(range(N))
        return
    assert not [
        i for i in same if len(np.unique(images[i])) > 1
    ]  # flat ones may be equal, such as white on white


@every_attack
@pytest.mark.parametrize("side", [SIDE, 32])
def test_the_change_keeps_to_its_budget(name, knobs, side):
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (N, side, side, 3), dtype=np.uint8)
    images[0], images[1] = 0, 255
    attack = make(name, {**knobs, **({} if knobs else covered(name))}, images)
    plan = attack.plan(np.arange(N) % CLASSES, seed=1, num_classes=CLASSES)
    stamped = attack.apply(images, np.arange(N), plan)
    triggered = attack.trigger(images, np.arange(N))
    assert attack.budget(images.shape[1:], "train").excess(images, stamped) == []
    assert attack.budget(images.shape[1:], "test").excess(images, triggered) == []


UNBOUNDED = {
    "composite": "puts half of another image beside the image's own",
    "dynamic": "a network decides where each image is changed, by up to 255 levels",
    "feature_collision": "an image comes from gradient steps on a distance of features, in no ball",
    "issba": "an encoder's residual is as large as its training made it",
    "record": "the images of another toolkit's attack, whichever it was",
    "wanet": "moves pixels, by as much as neighbours differ",
}
"""Attacks that bound no change of pixels, and why they cannot."""


def test_attacks_without_a_budget_say_why():
    shape = (32, 32, 3)
    bounds = {name: [make(name, {}).budget(shape, split) for split in ("train", "test")] for name in NAMES}
    assert {name for name, budgets in bounds.items() if Budget() in budgets} == set(UNBOUNDED)


@pytest.mark.parametrize(
    ("levels", "count", "excess"),
    [
        (200, 4, []),
        (200, 5, ["pixels: 5, at most 4", "L2: 1.75378, at most 1.6"]),
        (9, 64, []),  # one level is rounding
        (10, 5, ["pixels: 5, at most 4"]),
        (202, 1, ["grey levels: 202, at most 201"]),
    ],
)
def test_a_budget_may_have_a_bound_for_few_pixels_and_one_elsewhere(levels, count, excess):
    before = np.full((1, 8, 8, 1), 20, np.uint8)
    after = before.copy()
    after.reshape(-1)[:count] += levels
    assert Budget(200, pixels=4, elsewhere=8).excess(before, after) == excess


@pytest.mark.parametrize("name", NAMES)
def test_attacks_with_cover_rows_have_some_here(name):
    knobs = covered(name)
    plan = make(name, {"rate": 0.2, **knobs}).plan(np.arange(N) % CLASSES, seed=1, num_classes=CLASSES)
    assert bool(len(plan.cover_ids)) == bool(knobs)


@every_attack
def test_the_goal_of_the_test_images(name, knobs, data):
    _, labels = data
    attack = make(name, knobs)
    goals = attack.test_labels(labels, CLASSES)
    assert goals.shape == labels.shape
    assert goals.min() >= 0
    assert goals.max() < CLASSES
    if attack.single_target is not None:
        assert set(goals) == {attack.single_target}


@every_attack
def test_what_it_is_measured_on(name, knobs, data):
    _, labels = data
    attack = make(name, knobs)
    measured = attack.test_rows(labels, CLASSES)
    assert measured.shape == labels.shape
    assert measured.dtype == bool
    assert measured.any()
    if attack.single_target is not None:
        assert (attack.test_labels(labels, CLASSES)[measured] != labels[measured]).any()
    # trials of other rates share what they are measured on
    assert np.array_equal(attack.model_copy(update={"rate": 0.123}).test_rows(labels, CLASSES), measured)


@every_attack
def test_small_to_ship_and_equal_after_the_journey(name, knobs, data):
    images, _ = data
    assert len(pickle.dumps(make(name, knobs))) < 4096  # what it trains is shared by all tasks, beside it
    attack = make(name, knobs, images)
    there = attack.trigger(images[:4], np.arange(4))
    parcel = pickle.dumps(attack)
    assert np.array_equal(pickle.loads(parcel).trigger(images[:4], np.arange(4)), there)


@every_attack
@pytest.mark.parametrize("side", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_other_image_sizes(name, knobs, side):
    images = np.full((N, side, side, 3), 100, np.uint8)
    images[:, :, ::2] += 20  # a warp leaves flat images as they are
    images += np.arange(N, dtype=np.uint8)[:, None, None, None]  # and a mixture equal ones
    attack = make(name, knobs, images)
    assert attack.check(CLASSES, np.arange(N) % CLASSES, (side, side, 3)) == []
    changed = (attack.trigger(images[:2], np.arange(2)) != images[:2]).any((1, 2, 3))
    assert changed.all() if attack.stamps_test else not changed.any()


@every_attack
def test_wrong_requests_are_refused(name, knobs, data):
    if name == "record":
        pytest.skip("takes no requests: its rate and target are its folder's")
    _, labels = data
    attack = make(name, knobs)
    cls = type(attack)
    for wrong in ({"rate": 1e-6}, {"rate": 0.0}):
        with pytest.raises(ConfigError, match="rate: expected a rate that poisons at least one"):
            cls(**{**knobs, **wrong}).plan(labels, seed=0)
    with pytest.raises(ConfigError, match="target: expected a class from 0 to 3, got 4"):
        cls(**{**knobs, "target": CLASSES}).plan(labels, seed=0, num_classes=CLASSES)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_names_its_source_and_explains_its_knobs(name):
    described = registry.describe("attacks", name)
    assert described.summary
    assert described.source
    cls = registry.load("attacks", name)
    body = ast.parse(inspect.getsource(cls)).body[0].body
    followed_by_text = {
        line.target.id
        for line, after in itertools.pairwise(body)
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr)
    }
    own = [knob for knob in cls.model_fields if knob in cls.__annotations__]
    assert [knob for knob in own if knob not in followed_by_text] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_names_no_test_images(name):
    cls = registry.load("attacks", name)
    attack = make(name, {}) if name == "record" else cls()
    assert not set(attack.identity("test")) & {"rate", "rate_basis", "include_target_class"}

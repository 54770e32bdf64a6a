"""Every attack passes these by being there; tiny synthetic data, and tiny networks where it trains some."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from pydantic import ValidationError

from bdtune.errors import ConfigError
from bdtune.plugins import registry
from bdtune.plugins.budget import Budget
from bdtune.plugins.presets import presets
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.testing.attacks import CHECKS, CLASSES, LABELS, N, noise, small_attack, with_cover_rows
from bdtune.testing.attacks import excess as beyond
from bdtune.testing.described import check_described
from bdtune.testing.small import equipped
from tests.records import record_of

NAMES = registry.names("attacks")
CASES = [(name, {}) for name in NAMES] + list(presets("attacks").values())


def make(name, knobs, images=None):
    """Return the attack, with what it trains on `images` where it trains something."""
    return record(images) if name == "record" else small_attack(name, knobs, images)


def record(images=None, **knobs):
    """Return the attack of a small record, whose folder decides what knobs decide elsewhere."""
    pixels = noise() if images is None else images
    both = (pixels, np.arange(len(pixels)) % CLASSES)
    attack = record_of(both, both, CLASSES)
    return attack if images is None else equipped(attack, images)


def promises():
    """Return each check of each attack and preset; a record's rows and rate are its folder's."""
    not_of_records = {"check_seed", "check_wrong_requests"}
    for number, (name, knobs) in enumerate(CASES):
        for check in CHECKS:
            if name != "record" or check.__name__ not in not_of_records:
                case = record if name == "record" else partial(small_attack, name, knobs)
                marks = [pytest.mark.slow] if number >= len(NAMES) else []  # presets: in the full run
                yield pytest.param(check, case, id=f"{name}-{number}-{check.__name__}", marks=marks)


@pytest.mark.parametrize(("check", "case"), list(promises()))
def test_every_attack_keeps_its_promises(check, case):
    check(case)


@pytest.mark.parametrize("name", NAMES)
def test_describes_itself(name):
    check_described("attacks", name)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "record"])
def test_counts_in_the_place_of_rates(name):
    labels = LABELS
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
def test_attacks_that_relabel_choose_their_classes_and_the_others_say_why_not(name):
    labels = LABELS
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
    assert beyond(Budget(200, pixels=4, elsewhere=8), before, after) == excess


@pytest.mark.parametrize("name", NAMES)
def test_attacks_with_cover_rows_have_some_here(name):
    knobs = with_cover_rows(registry.load("attacks", name))
    plan = make(name, {"rate": 0.2, **knobs}).plan(np.arange(N) % CLASSES, seed=1, num_classes=CLASSES)
    assert bool(len(plan.cover_ids)) == bool(knobs)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_names_no_test_images(name):
    cls = registry.load("attacks", name)
    attack = make(name, {}) if name == "record" else cls()
    assert not set(attack.identity("test")) & {"rate", "rate_basis", "include_target_class"}

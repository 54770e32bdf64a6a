from __future__ import annotations

from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bdtune
from bdtune.effects import TrainOnly
from bdtune.errors import BdtuneError, ConfigError
from bdtune.plugins.attack import Attack, quantised
from bdtune.plugins.poison_plan import Role, Rows, drawn_order, exact_count
from bdtune.poisoning.train_sources import FitSet

LABELS = np.arange(1000) % 10


class Cover(Attack):
    """Half-strength inversion; cover rows get another disturbance; the plan fixes one of four variants."""

    cover_rate: Annotated[float, TrainOnly] = 0.05

    def stamp(self, images, rows):
        weight = np.where(rows.role == Role.COVER, 0.25, 0.5 + 0.1 * rows.extras["variant"])
        return images + weight[:, None, None, None] * (1 - 2 * images)

    def stamp_test(self, images, rows):
        return 1 - images

    def extras(self, poison_ids, cover_ids, labels, seed):
        variant = np.zeros(len(labels), np.int8)
        variant[poison_ids] = np.arange(len(poison_ids)) % 4
        return {"variant": variant}

    def cover_fraction(self):
        return self.cover_rate


class CleanLabel(Attack):
    """Whitens images of the target class."""

    clean_label = True

    def stamp(self, images, rows):
        return np.ones_like(images)


@pytest.mark.parametrize(
    ("rate", "basis", "expected"),
    [(0.1, 50_000, 5000), (0.29, 100, 29), (0.57, 100, 57), (0.1, 1437, 143), (1.0, 7, 7), (1e-5, 100, 0)],
)
def test_counts_are_those_of_the_decimal_number(rate, basis, expected):
    assert exact_count(rate, basis) == expected


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_counts_never_exceed_the_basis(thousandths, basis):
    rate = thousandths / 10_000
    assert exact_count(rate, basis) == thousandths * basis // 10_000


def test_drawn_order_is_pinned():
    """A change here would poison other samples under the same key."""
    assert drawn_order(np.arange(1000), 1000, 7)[:6].tolist() == [177, 175, 3, 705, 649, 187]


def test_smaller_rates_poison_a_subset_and_exclusion_keeps_the_order():
    few, many = (bdtune.attack("badnets", rate=rate).plan(LABELS, seed=3).poison_ids for rate in (0.05, 0.2))
    assert set(few) < set(many)
    order = drawn_order(np.arange(1000), 1000, 3)
    without = drawn_order(np.flatnonzero(LABELS != 0), 1000, 3)
    assert np.array_equal(order[LABELS[order] != 0], without)


@pytest.mark.parametrize(("basis", "expected"), [("dataset", 100), ("non_target", 90), ("target_class", 10)])
def test_rate_basis(basis, expected):
    plan = bdtune.attack("badnets", rate=0.1, rate_basis=basis).plan(LABELS, seed=0)
    assert len(plan.poison_ids) == expected


def test_poisoned_rows_of_the_target_class_are_triggered_but_not_relabelled():
    plan = bdtune.attack("badnets", rate=0.5, include_target_class=True).plan(LABELS, seed=0)
    of_target = plan.poison_ids[LABELS[plan.poison_ids] == 0]
    assert len(of_target) > 20
    assert (plan.role() > 0)[of_target].all()
    assert (plan.labels[of_target] == 0).all()


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("name", ["badnets", "blend", "wanet", "adap_patch"])
def test_one_seed_is_one_plan_in_python_and_in_a_trial(name, seed):
    attack = bdtune.attack(name, rate=0.05, seed=seed)
    fit = FitSet(dataset=bdtune.dataset("digits"), attack=attack, seed=0)
    labels = fit.dataset.labels("train", None)
    assert attack.plan(labels, seed=0).digest() == fit.plan(labels).digest()
    same = attack.plan(labels, seed=1).digest() == fit.plan(labels).digest()
    assert same == (seed is not None)  # a plan of the attack's own seed is the same in all trials


def test_cover_rows_come_next_in_the_same_order_and_keep_their_label():
    plan = Cover(rate=0.1).drawn_plan(LABELS, 0)
    order = drawn_order(np.flatnonzero(LABELS != 0), 1000, 0)
    assert set(plan.poison_ids) == set(order[:100])
    assert set(plan.cover_ids) == set(order[100:150])
    assert np.array_equal(plan.labels[plan.cover_ids], LABELS[plan.cover_ids])
    assert np.bincount(plan.extras["variant"][plan.poison_ids]).tolist() == [25, 25, 25, 25]


def test_the_stamp_sees_each_rows_role_and_extras():
    attack = Cover(rate=0.1)
    plan = attack.plan(LABELS, seed=0)
    stamped = attack.apply(np.zeros((1000, 2, 2, 3), np.uint8), np.arange(1000), plan)[:, 0, 0, 0]
    variant = plan.extras["variant"]
    assert set(stamped[plan.cover_ids]) == {64}
    assert np.array_equal(stamped[plan.poison_ids], np.array([128, 153, 179, 204])[variant[plan.poison_ids]])


def test_too_much_for_the_class():
    with pytest.raises(
        ConfigError, match=r"rate: expected at most the 100 images of class 0.*got 0.2 of 1000"
    ):
        CleanLabel(rate=0.2).plan(LABELS, seed=0)
    plan = CleanLabel(rate=0.1).plan(LABELS, seed=0)
    assert np.array_equal(plan.labels, LABELS)
    assert np.array_equal(plan.poison_ids, np.flatnonzero(LABELS == 0))


def test_too_much_for_the_other_classes():
    with pytest.raises(ConfigError, match="at most the 900 images that are not of the target class"):
        bdtune.attack("badnets", rate=0.95).plan(LABELS, seed=0)
    with pytest.raises(ConfigError, match=r"cover_rate: .*got 500 poison and 450 cover rows"):
        Cover(rate=0.5, cover_rate=0.45).plan(LABELS, seed=0)


def test_check_collects_problems_without_raising():
    attack = bdtune.attack("badnets", target=12, size=40)
    problems = attack.check(10, LABELS, (32, 32, 3))
    assert [problem.path for problem in problems] == ["target", "size"]


def test_a_zero_rate_hints_at_no_attack():
    (problem,) = bdtune.attack("badnets", rate=0.0).check(10, LABELS)
    assert "null" in problem.hint


def test_all_to_all():
    attack = bdtune.attack("badnets", rate=1.0, all_to_all=True)
    plan = attack.plan(LABELS, seed=0)
    assert np.array_equal(plan.labels, (LABELS + 1) % 10)
    assert attack.single_target is None
    assert np.array_equal(attack.test_labels(LABELS, 10), (LABELS + 1) % 10)


@pytest.mark.parametrize("how", ["round", "trunc"])
def test_untouched_pixels_survive_the_quantiser(how):
    every = np.arange(256, dtype=np.uint8)
    assert np.array_equal(quantised(every.astype(np.float32) / np.float32(255), how), every)


def test_quantiser():
    values = np.array([-1, 0, 0.4 / 255, 0.5 / 255, 100.6 / 255, 1, 300 / 255], np.float32)
    assert quantised(values, "round").tolist() == [0, 0, 0, 1, 101, 255, 255]
    assert quantised(values, "trunc").tolist() == [0, 0, 0, 0, 100, 255, 255]


def test_per_image_randomness_is_keyed_by_seed_attack_split_and_id():
    attack = bdtune.attack("blend", pattern="noise", per_sample=True)

    def first(attack, split, sample_id):
        rows = Rows(split, np.array([sample_id]), np.ones(1, np.uint8))
        return next(attack.generators(rows)).integers(2**60)

    other_seed = bdtune.attack("blend", trigger_seed=1)
    drawn = [
        first(attack, "train", 5),
        first(attack, "test", 5),
        first(attack, "train", 6),
        first(other_seed, "train", 5),
        first(bdtune.attack("badnets"), "train", 5),
    ]
    assert len(set(drawn)) == 5
    assert first(attack, "train", 5) == drawn[0]


def test_artefacts_must_be_given_before_they_are_used():
    attack = bdtune.attack("badnets")
    with pytest.raises(BdtuneError, match="'badnets' needs its trained 'trigger'"):
        attack.artefact("trigger")
    from bdtune.engine.stage import Artefact

    equipped = attack.equip({"trigger": Artefact(info={"a": 1})})
    assert equipped.artefact("trigger").info == {"a": 1}
    assert equipped.identity() == attack.identity()
    assert not attack._artefacts

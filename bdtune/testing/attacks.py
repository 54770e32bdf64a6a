"""What every attack promises, checked on tiny synthetic images.

A check takes `make(images=None, **knobs)`, which returns the attack with knobs over those it has, and with
what it trains on `images` where it trains something.
"""

from __future__ import annotations

import pickle
import sys
from functools import partial
from math import sqrt
from typing import TYPE_CHECKING, Any, Protocol

import cloudpickle
import numpy as np

from bdtune.errors import ConfigError
from bdtune.plugins import registry
from bdtune.plugins.poison_plan import Role
from bdtune.source import is_own
from bdtune.testing.described import check_described, refused
from bdtune.testing.small import equipped, is_trained, merged, quick

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.plugins.attack import Attack
    from bdtune.plugins.budget import Budget
    from bdtune.plugins.poison_plan import PoisonPlan

N, SIDE, CLASSES = 60, 16, 4
LABELS = np.arange(N) % CLASSES


class Make(Protocol):
    """Makes the attack that is checked."""

    def __call__(self, images: np.ndarray | None = None, **knobs: Any) -> Attack:
        """Return the attack with these knobs, equipped for `images`."""


def small_attack(
    plugin: str, settings: dict[str, Any], images: np.ndarray | None = None, **knobs: Any
) -> Attack:
    """Return an attack by name, with what it trains on `images` where it trains something.

    Rates that would poison no row of the tiny data are raised, and those that would poison all of a class
    are lowered.
    """
    cls = registry.load("attacks", plugin)
    values = {"rate": 0.5 if cls.clean_label else 0.2, **settings, **knobs}
    for rate, count in (("rate", "count"), ("cover_rate", "cover_count")):
        if count in values:
            values.pop(rate, None)
        elif rate in cls.model_fields:
            values[rate] = min(max(values.get(rate, 0.0), 0.1), 0.9)
    if not is_trained(cls):
        return cls(**values)
    attack = cls(**merged(values, quick(cls)))
    return attack if images is None else equipped(attack, images)


def with_cover_rows(cls: type[Attack]) -> dict[str, float]:
    """Return the knobs that give an attack cover rows, where it can have them."""
    wanted = {"cover_rate": 0.2, "cross_ratio": 0.3}
    return {knob: value for knob, value in wanted.items() if knob in cls.model_fields}


def noise(side: int = SIDE) -> np.ndarray:
    """Return random images uint8 [N, side, side, 3]."""
    return np.random.default_rng(0).integers(0, 256, (N, side, side, 3), dtype=np.uint8)


def noise_and_flat() -> np.ndarray:
    """Return random images of which four are of one grey each, read-only."""
    images = noise()
    images[:4] = np.array([0, 255, 128, 1], np.uint8)[:, None, None, None]
    images.flags.writeable = False
    return images


def _plan(attack: Attack, seed: int = 1) -> PoisonPlan:
    return attack.plan(LABELS, seed=seed, num_classes=CLASSES)


def check_rows_outside_the_plan(make: Make) -> None:
    """Rows that are not planned keep their bytes, and the input is left as it is."""
    images = noise_and_flat()
    attack, before = make(images), images.copy()
    plan = _plan(attack)
    stamped = attack.apply(images, np.arange(N), plan)
    assert stamped.dtype == np.uint8
    assert stamped.shape == images.shape
    assert np.array_equal(images, before)
    untouched = plan.role() == Role.CLEAN
    assert np.array_equal(stamped[untouched], images[untouched])
    assert not np.shares_memory(stamped, images)


def check_counts_and_labels(make: Make) -> None:
    """The plan has as many rows as the rates ask for, and relabels the poisoned ones alone."""
    attack = make()
    plan = _plan(attack)
    of_target = int(np.sum(attack.target == LABELS))
    basis = {"dataset": N, "non_target": N - of_target, "target_class": of_target}[attack.rate_basis]
    assert attack.rate is not None
    assert len(plan.poison_ids) == int(attack.rate * basis + 1e-9)
    assert len(plan.cover_ids) == int(attack.cover_fraction() * basis + 1e-9)
    assert not set(plan.poison_ids) & set(plan.cover_ids)
    assert np.array_equal(np.flatnonzero(plan.role() == Role.POISON), plan.poison_ids)
    assert np.array_equal(np.flatnonzero(plan.role() == Role.COVER), plan.cover_ids)
    goals = LABELS if attack.clean_label else attack.test_labels(LABELS, CLASSES)
    assert np.array_equal(plan.labels[plan.poison_ids], goals[plan.poison_ids])
    kept = np.setdiff1d(np.arange(N), plan.poison_ids)
    assert np.array_equal(plan.labels[kept], LABELS[kept])


def check_poisoned_classes(make: Make) -> None:
    """A clean-label attack poisons the target class alone, another one all classes but that one."""
    attack = make()
    poisoned = [_plan(attack, seed).poison_ids for seed in range(5)]
    classes = set(LABELS[np.concatenate(poisoned)].tolist())
    others = set(range(CLASSES)) - {attack.target}
    if attack.clean_label:
        assert classes == {attack.target}
    else:
        assert classes == (others | {attack.target} if attack.include_target_class else others)


def check_seed(make: Make) -> None:
    """Equal seeds give equal plans, another seed another one."""
    attack = make()
    first, again, other = (_plan(attack, seed) for seed in (3, 3, 4))
    assert first.digest() == again.digest()
    by_position = getattr(attack, "dialect", None) in getattr(attack, "batchwise", ())
    assert by_position or not np.array_equal(first.poison_ids, other.poison_ids)


def check_any_order_and_batches(make: Make) -> None:
    """An image's stamp depends on the image and its id alone, not on order or batches."""
    images, ids, draws = noise_and_flat(), np.arange(N), np.random.default_rng(0)
    attack = make(images, **with_cover_rows(type(make())))
    plan = _plan(attack)
    whole = attack.apply(images, ids, plan), attack.trigger(images, ids)
    for _ in range(4):
        cuts = np.sort(draws.choice(np.arange(1, N), draws.integers(1, 5), replace=False))
        for part in np.split(draws.permutation(N), cuts):
            assert np.array_equal(attack.apply(images[part], part, plan), whole[0][part])
            assert np.array_equal(attack.trigger(images[part], part), whole[1][part])


def check_trigger_shows(make: Make) -> None:
    """The trigger changes every test image, unless the attack stamps none; flat images may stay equal."""
    images = noise_and_flat()
    attack = make(images)
    triggered = attack.trigger(images, np.arange(N))
    assert triggered.dtype == np.uint8
    same = [i for i in range(N) if np.array_equal(triggered[i], images[i])]
    if attack.stamps_test:
        assert not [i for i in same if len(np.unique(images[i])) > 1]
    else:
        assert same == list(range(N))


def check_budget(make: Make) -> None:
    """No image changes more than the attack's budget allows."""
    for side in (SIDE, 32):
        images = np.random.default_rng(1).integers(0, 256, (N, side, side, 3), dtype=np.uint8)
        images[0], images[1] = 0, 255
        attack = make(images, **with_cover_rows(type(make())))
        stamped = attack.apply(images, np.arange(N), _plan(attack))
        triggered = attack.trigger(images, np.arange(N))
        assert excess(attack.budget(images.shape[1:], "train"), images, stamped) == []
        assert excess(attack.budget(images.shape[1:], "test"), images, triggered) == []


def check_goals(make: Make) -> None:
    """The class that the attacker wants of each test image is a class."""
    attack = make()
    goals = attack.test_labels(LABELS, CLASSES)
    assert goals.shape == LABELS.shape
    assert goals.min() >= 0
    assert goals.max() < CLASSES
    if attack.single_target is not None:
        assert set(goals) == {attack.single_target}


def check_measured_rows(make: Make) -> None:
    """The attack is measured on some test images, which do not depend on the rate."""
    attack = make()
    measured = attack.test_rows(LABELS, CLASSES)
    assert measured.shape == LABELS.shape
    assert measured.dtype == bool
    assert measured.any()
    if attack.single_target is not None:
        assert (attack.test_labels(LABELS, CLASSES)[measured] != LABELS[measured]).any()
    other = attack.model_copy(update={"rate": 0.123})
    assert np.array_equal(other.test_rows(LABELS, CLASSES), measured)


def check_sending(make: Make) -> None:
    """An attack is small when it is sent to a worker, and stamps the same there."""
    images, ids = noise_and_flat(), np.arange(4)
    attack = make(images)
    if is_own(type(attack).__module__):
        assert len(pickle.dumps(make())) < 4096  # what it trains is shared by all tasks
        arrived = pickle.loads(pickle.dumps(attack))
    else:
        arrived = _sent_with_its_code(attack)
    assert np.array_equal(arrived.trigger(images[:4], ids), attack.trigger(images[:4], ids))


def _sent_with_its_code(attack: Attack) -> Any:
    """Return an attack as a worker gets it that cannot import its module."""
    module = sys.modules[type(attack).__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        return pickle.loads(cloudpickle.dumps(attack))
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def check_other_sizes(make: Make) -> None:
    """Images of 32 and 64 pixels are accepted and stamped."""
    for side in (32, 64):
        images = np.full((N, side, side, 3), 100, np.uint8)
        images[:, :, ::2] += 20  # a warp leaves flat images as they are
        images += np.arange(N, dtype=np.uint8)[:, None, None, None]  # and a mixture equal ones
        attack = make(images)
        assert attack.check(CLASSES, LABELS, (side, side, 3)) == []
        changed = (attack.trigger(images[:2], np.arange(2)) != images[:2]).any((1, 2, 3))
        assert changed.all() if attack.stamps_test else not changed.any()


def check_wrong_requests(make: Make) -> None:
    """A rate that poisons nothing and a target that is no class are refused."""
    attack = make()
    for rate in (1e-6, 0.0):
        wrong = attack.model_copy(update={"rate": rate})
        refused(partial(_plan, wrong), ConfigError, "rate: expected a rate that poisons at least one")
    wrong = attack.model_copy(update={"target": CLASSES})
    refused(partial(_plan, wrong), ConfigError, "target: expected a class from 0 to 3, got 4")


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_rows_outside_the_plan,
    check_counts_and_labels,
    check_poisoned_classes,
    check_seed,
    check_any_order_and_batches,
    check_trigger_shows,
    check_budget,
    check_goals,
    check_measured_rows,
    check_sending,
    check_other_sizes,
    check_wrong_requests,
)


def check_attack(name: str, **knobs: Any) -> None:
    """Check an attack by name, with these knobs; raises `AssertionError` for the first broken promise."""
    check_described("attacks", name)
    for check in CHECKS:
        check(partial(small_attack, name, knobs))


def excess(budget: Budget, before: np.ndarray, after: np.ndarray) -> list[str]:
    """Return what of images uint8 [n, H, W, C] goes beyond the budget; one level may be rounding."""
    change = np.abs(after.astype(np.float64) - before)
    _, height, width, channels = change.shape
    pixels = height * width if budget.pixels is None else budget.pixels
    levels = min(255.0, budget.grey_levels + 1)  # one level of rounding
    faint = min(levels, budget.elsewhere + 1) if budget.elsewhere else 0.0
    squares = pixels * levels**2 + (height * width - pixels) * faint**2
    l2 = sqrt(channels * squares) / 255 if budget.l2 is None else budget.l2
    found = {
        "grey levels": (change.max(initial=0), levels),
        "pixels": ((change > faint).any(-1).sum((1, 2)).max(initial=0), pixels),
        "L2": (np.sqrt(((change / 255) ** 2).sum((1, 2, 3))).max(initial=0), l2 + 1e-9),
    }
    return [f"{what}: {got:g}, at most {most:g}" for what, (got, most) in found.items() if got > most]

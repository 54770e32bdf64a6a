from __future__ import annotations

import random

import numpy as np
import pytest

import bdtune
from bdtune.attacks.adap_patch.patches import CORNERS, TRIGGERS, drawn, ember, swirl, trojan
from bdtune.poisoning.patterns import robot

LABELS = np.arange(400) % 10
IDS = np.arange(400)


def grey(side=32, n=400):
    return np.full((n, side, side, 3), 100, np.uint8)


def blend(**knobs):
    return bdtune.attack("adap_blend", **{"rate": 0.1, "cover_rate": 0.1, "pattern": "noise", **knobs})


def changed_cells(images, cells=4):
    """Return bool [n, cells, cells]: cells with any changed pixel."""
    n, side = images.shape[:2]
    return (images != 100).reshape(n, cells, side // cells, cells, side // cells, 3).any((2, 4, 5))


@pytest.mark.parametrize("side", [32, 64])
def test_half_of_sixteen_cells_in_training_and_all_at_test_time(side):
    attack = blend()
    plan = attack.plan(LABELS, seed=0)
    stamped = attack.apply(grey(side), IDS, plan)[plan.role() > 0]
    cells = changed_cells(stamped)
    assert (cells.sum((1, 2)) == 8).all()
    assert len(np.unique(cells.reshape(len(cells), -1), axis=0)) > 70  # of 80: a new choice for each row
    assert (cells.mean(0) > 0.3).all()
    assert changed_cells(attack.trigger(grey(side, 2), np.arange(2))).all()


def test_cells_of_a_side_that_four_does_not_divide():
    plan = blend().plan(LABELS, seed=0)
    stamped = blend().apply(grey(30), IDS, plan)[plan.poison_ids]
    share = (stamped != 100).any(-1).mean((1, 2))
    assert share.min() > 0.4
    assert share.max() < 0.6


def test_the_mix_and_its_larger_opacity_at_test_time():
    attack = blend(pattern="robot", kept=1.0)
    plan = attack.plan(LABELS, seed=0)
    picture = robot(32, 32).colours * 255
    trained = attack.apply(grey(), IDS, plan)[plan.poison_ids[0]]
    assert np.abs(trained - (0.85 * 100 + 0.15 * picture)).max() <= 0.5 + 1e-3
    assert np.abs(attack.trigger(grey(n=1), np.zeros(1)) - (80 + 0.2 * picture)).max() <= 0.5 + 1e-3


def test_cover_rows_are_triggered_like_poison_and_keep_their_label():
    attack = blend(rate=0.05, cover_rate=0.15)
    plan = attack.plan(LABELS, seed=0)
    assert (len(plan.poison_ids), len(plan.cover_ids)) == (20, 60)
    assert np.array_equal(plan.labels[plan.cover_ids], LABELS[plan.cover_ids])
    assert (changed_cells(attack.apply(grey(), IDS, plan)[plan.cover_ids]).sum((1, 2)) == 8).all()


@pytest.mark.parametrize("name", ["adap_blend", "adap_patch"])
def test_training_and_test_settings_are_apart(name):
    attack = bdtune.attack(name)
    assert "opacity" not in attack.identity("test")
    assert "cover_rate" not in attack.identity("test")
    assert "test_opacity" not in attack.identity("train")


def test_more_cells_than_pixels():
    (problem,) = blend(cells=40).check(10, None, (32, 32, 3))
    assert problem.path == "cells"


# --- patches


def patch(**knobs):
    return bdtune.attack("adap_patch", **{"rate": 0.1, "cover_rate": 0.05, **knobs})


def test_each_row_has_one_trigger_and_the_numbers_are_balanced():
    plan = patch(rate=0.105).plan(LABELS, seed=0)
    trigger = plan.extras["trigger"]
    for ids in (plan.poison_ids, plan.cover_ids):
        counts = np.bincount(trigger[ids], minlength=4)
        assert counts.sum() == len(ids)
        assert np.ptp(counts) <= 1
    assert (trigger[~(plan.role() > 0)] == -1).all()


def test_triggers_are_not_tied_to_classes_of_sorted_data():
    labels = np.sort(LABELS)
    plan = patch(rate=0.5).plan(labels, seed=0)
    for number in range(4):
        assert len(set(labels[plan.poison_ids[plan.extras["trigger"][plan.poison_ids] == number]])) >= 8


BOXES = [
    (slice(27, 32), slice(27, 32), 0.5),
    (slice(1, 14), slice(18, 31), 0.2),
    (slice(0, 32), slice(0, 32), 0.5),
    (slice(21, 29), slice(21, 29), 0.3),
]


@pytest.mark.parametrize("number", range(4))
def test_where_each_trigger_lies_and_how_strong_it_is(number):
    attack = patch()
    plan = attack.plan(LABELS, seed=0)
    ids = plan.poison_ids[plan.extras["trigger"][plan.poison_ids] == number]
    stamped = attack.apply(grey(), IDS, plan)[ids].astype(float)
    rows, columns, opacity = BOXES[number]
    outside = np.ones((32, 32), bool)
    outside[rows, columns] = False
    assert (stamped[:, outside] == 100).all()
    picture = drawn(TRIGGERS[number], 32, 32)
    exact = 100 + opacity * picture.mask * (255 * picture.colours - 100)
    assert np.abs(stamped - exact).max() <= 0.5 + 1e-3


def test_the_drawings_have_the_measures_of_the_pictures_they_replace():
    levels = ember(5).colours.reshape(-1, 3) * 255
    assert levels.mean(0) == pytest.approx((180, 204, 244), abs=1)
    assert levels.std(0) == pytest.approx((64, 44, 10), abs=1)
    assert 135 <= swirl(13).mask.sum() <= 145
    assert drawn(CORNERS, 32, 32).mask.sum() == 36
    assert len(np.unique(trojan(8).colours.reshape(-1, 3), axis=0)) == 64


FOUR_CELLS = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 0]])
"""The upper left corner; the others are its mirror images."""


def four_corners(image):
    """Return the corners' 3x3 pixels, each turned to the upper left by mirroring."""
    flipped = (image, image[:, ::-1], image[::-1], image[::-1, ::-1])
    return [each[:3, :3] for each in flipped]


def test_a_corner_has_four_white_cells_and_none_towards_the_middle():
    attack = patch(opacity=(1.0, 1.0, 1.0, 1.0))
    plan = attack.plan(LABELS, seed=0)
    row = plan.poison_ids[plan.extras["trigger"][plan.poison_ids] == 2][0]
    image = attack.apply(grey(), IDS, plan)[row]
    assert (image == 255).all(-1).sum() == 16
    for corner in four_corners(image):
        assert (corner == FOUR_CELLS[..., None]).all()


def test_test_images_carry_several_opaque_triggers_at_once():
    image = patch().trigger(grey(n=1), np.zeros(1))[0]
    for corner in four_corners(image):
        assert (corner == FOUR_CELLS[..., None]).all()
    left, right = image[27:, :5], image[27:, 27:]
    assert np.array_equal(left[:2], right[:2])
    assert np.array_equal(left[:2], np.rint(ember(5).colours[:2] * 255))
    assert (image[5:27, 5:27] == 100).all()


def test_the_other_pair_for_gtsrb():
    image = patch(test_patches="logo_and_square").trigger(grey(n=1), np.zeros(1))[0]
    assert (image[27:, :5] == 100).all()
    assert np.array_equal(image[21:29, 21:29], np.rint(trojan(8).colours * 255))


@pytest.mark.parametrize("side", [8, 16, 64, 224])
def test_patches_scale_with_the_image(side):
    attack = patch()
    plan = attack.plan(LABELS[:40], seed=0)
    stamped = attack.apply(grey(side, 40), IDS[:40], plan)
    changed = (stamped != 100).any(-1).sum((1, 2))
    assert (changed[plan.role() > 0] > 0).all()
    if side >= 64:
        number = plan.extras["trigger"]
        corners = changed[(plan.role() > 0) & (number == 2)]
        assert set(corners) == {36 * (side // 32) ** 2}


def test_rows_and_numbers_of_backdoorbox():
    order = list(range(400))
    random.Random(6).shuffle(order)
    attack = patch(dialect="backdoorbox", rate=0.02, cover_rate=0.04)
    plan = attack.plan(LABELS, seed=6)
    assert plan.poison_ids.tolist() == sorted(order[:8])
    assert plan.cover_ids.tolist() == sorted(order[8:24])
    assert plan.extras["trigger"][order[:8]].tolist() == [0, 2, 1, 3] * 2
    assert plan.extras["trigger"][order[8:24]].tolist() == [0, 2, 1, 3] * 4
    image = attack.trigger(grey(n=1), np.zeros(1))[0]
    assert np.array_equal(image[27:, 27:], np.rint(ember(5).colours * 255))  # over the checker
    assert (image[27:29, :5] == 100).all()
    with pytest.raises(ValueError, match="'canonical' or 'backdoorbox'"):
        patch(dialect="backdoorbench")

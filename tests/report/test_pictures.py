from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import bdtune
from bdtune.attacks.blend import Blend
from bdtune.report.pictures import _caption, attack_picture, chosen_ids, dataset_picture, gain_for

LABELS = np.arange(120) % 12
IMAGES = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "knobs", "rows"),
    [("badnets", {}, 3), ("blend", {}, 3), ("blend", {"test_ratio": 0.3}, 5)],
)
def test_a_picture_has_a_row_for_each_view(tmp_path, name, knobs, rows):
    attack = bdtune.attack(name, rate=0.3, **knobs)
    path = attack_picture(IMAGES, LABELS, attack, tmp_path / "deep" / "picture.png", columns=3)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.height == pytest.approx(160 * (1.07 + rows * 1.37), abs=2)


def test_a_data_set_is_drawn_with_its_class_names(tmp_path):
    path = dataset_picture(bdtune.dataset("digits"), bdtune.attack("badnets"), tmp_path / "p.png", columns=4)
    assert path.stat().st_size > 2000


def test_a_data_set_is_drawn_with_the_attack_that_is_made_for_it(tmp_path, monkeypatch):
    asked, dataset = [], bdtune.dataset("digits")
    monkeypatch.setattr(Blend, "for_dataset", lambda self, given: asked.append(given) or self)
    dataset_picture(dataset, bdtune.attack("blend"), tmp_path / "p.png", columns=4)
    assert asked == [dataset]


def test_the_same_picture_twice(tmp_path):
    attack = bdtune.attack("badnets", rate=0.3)
    one, two = (attack_picture(IMAGES, LABELS, attack, tmp_path / n, columns=2) for n in ("a.png", "b.png"))
    assert one.read_bytes() == two.read_bytes()


def test_the_rows_shown_are_poisoned_and_of_many_classes():
    plan = bdtune.attack("badnets", rate=0.5).plan(LABELS, seed=0)
    ids = chosen_ids(plan, LABELS, 8)
    assert len(set(LABELS[ids])) == len(ids) == 8
    assert set(ids) <= set(plan.poison_ids)


def test_fewer_poisoned_rows_than_columns():
    plan = bdtune.attack("badnets", rate=0.03).plan(LABELS, seed=0)
    assert sorted(chosen_ids(plan, LABELS, 8)) == plan.poison_ids.tolist()


class Compared(Blend):
    """Shows black pictures beside its poison, and leaves test images as they are."""

    stamps_test = False

    def shown_beside(self, rows):
        return {"others": np.zeros((len(rows), 16, 16, 3), np.uint8)}


def test_what_poison_resembles_is_shown_in_place_of_test_images(tmp_path):
    path = attack_picture(IMAGES, LABELS, Compared(rate=0.3, test_ratio=0.3), tmp_path / "p.png", columns=3)
    with Image.open(path) as picture:
        assert picture.height == pytest.approx(160 * (1.07 + 4 * 1.37), abs=2)


@pytest.mark.parametrize(
    ("levels", "gain"), [([255], 1), ([0, 0, 90], 2), ([40], 5), ([25, 24], 10), ([1], 20), ([0], 1)]
)
def test_differences_are_magnified_as_far_as_they_can_be_told_apart(levels, gain):
    assert gain_for(np.array(levels)) == gain


def test_a_few_strong_differences_do_not_hide_the_rest():
    assert gain_for(np.array([12] * 96 + [255] * 4)) == 20


def test_a_caption_tells_what_makes_this_attack_this_attack():
    attack = bdtune.attack("label_consistent", rate=0.5)
    text = _caption(attack, attack.plan(LABELS, seed=0))
    assert "5 of 120 images poisoned (50 % of target class), target 0" in text
    assert "pgd 16/255 in 30 steps" in text
    assert "dialect" not in text
    assert "epochs" not in text

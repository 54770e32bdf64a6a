"""LBA: the patch lies where it shall, and moves features to those of the target class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import bdtune
from bdtune.attacks.latent_backdoor.patch import LatentPatch, Place, RowsPerClass
from bdtune.engine.stage import Context
from bdtune.errors import UserError
from bdtune.plugins.data import LabelSet
from bdtune.poisoning.train_sources import FitSet
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.testing.small import NUMERICS, equipped, shown
from tests.trained import CLASSIFIER, quarters, upstream

N, SIDE, CLASSES = 96, 16, 4
LABELS = np.arange(N) % CLASSES
SMALL = {
    **CLASSIFIER,
    "batch_size": 32,
    "place": {"size": 16},
    "per_class": 12,
    "iterations": 100,
}


@pytest.fixture(scope="module")
def images():
    return quarters(N)


def made(images, **knobs):
    return equipped(bdtune.attack("latent_backdoor", **{**SMALL, **knobs}), images)


@pytest.mark.slow
def test_features_come_closer_to_those_of_the_target(images):
    info = made(images).artefact("patch").info
    assert info["distance"] < 0.9 * info["clean_distance"]
    assert (info["rows"], info["steps"]) == (36, 100)
    random = made(images, iterations=1).artefact("patch").info
    assert info["distance"] < random["distance"]


def test_images_are_what_the_equation_says(images):
    attack = made(images, opacity=0.4, iterations=2)
    picture = attack.artefact("patch").arrays["picture"]
    stamped = attack.trigger(images, np.arange(N))
    mixed = images / 255.0
    mixed[:, 8:, 8:] = 0.6 * mixed[:, 8:, 8:] + 0.4 * picture[8:, 8:]
    assert np.abs(stamped - np.floor(255 * mixed + 0.5)).max() <= 1
    assert np.array_equal(stamped[:, :8], images[:, :8])
    assert not picture[:8].any()


def test_the_fit_sees_what_the_stamp_makes(images):
    """The patch that gradients flow through and the one that is stamped are the same."""
    stage = LatentPatch(place=Place(size=8, corner="top_left"), ratio=0.5)
    value = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    clean = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    fitted = stage.stamp((SIDE, SIDE), torch.device("cpu"))(clean, value)
    mask = torch.tensor(stage.place.mask(SIDE, SIDE))[..., 0]
    assert torch.allclose(fitted, clean * (1 - 0.5 * mask) + 0.5 * stage.picture(value), atol=1e-6)
    assert (fitted[:, :, 4:] == clean[:, :, 4:]).all()
    assert (fitted[:, :, :4, :4] != clean[:, :, :4, :4]).any()


@pytest.mark.parametrize(
    ("corner", "rows", "columns"),
    [
        ("top_left", (2, 10), (2, 10)),
        ("top_right", (2, 10), (22, 30)),
        ("bottom_left", (22, 30), (2, 10)),
        ("bottom_right", (22, 30), (22, 30)),
    ],
)
def test_where_the_patch_lies(corner, rows, columns):
    mask = Place(size=8, inset=2, corner=corner).mask(32, 32)
    assert mask.sum() == 64
    assert mask[slice(*rows), slice(*columns)].all()
    assert Place(size=6).mask(64, 64).sum() == 144


def test_rows_of_each_class_are_drawn():
    labels = np.array([0] * 30 + [1] * 5 + [2] * 30)
    found = RowsPerClass(target=2, per_class=10).run(Context(seed=1), data=LabelSet(labels, 3)).arrays
    assert np.array_equal(np.bincount(labels[found["ids"]], minlength=3), [10, 5, 0])
    assert np.array_equal(np.bincount(labels[found["target_ids"]], minlength=3), [0, 0, 10])
    assert np.array_equal(found["ids"], np.unique(found["ids"]))
    other = RowsPerClass(target=2, per_class=10).run(Context(seed=2), data=LabelSet(labels, 3)).arrays
    assert not np.array_equal(found["target_ids"], other["target_ids"])
    with pytest.raises(UserError, match="needs images of class 3 and of another class"):
        RowsPerClass(target=3).run(Context(), data=LabelSet(labels, 4))


def test_one_patch_serves_all_rates_and_seeds_and_both_splits(images):
    data = shown(images, LABELS)
    recipes = {
        source(dataset=data, attack=bdtune.attack("latent_backdoor", rate=rate), seed=seed, numerics=NUMERICS)
        .upstream["patch"]
        .recipe
        for source in (FitSet, TriggeredTest)
        for rate in (0.05, 0.3)
        for seed in (0, 1)
    }
    assert len(recipes) == 1


def test_what_the_patch_is_made_for_decides_its_key(images):
    def key(**knobs):
        return upstream(bdtune.attack("latent_backdoor", **knobs), images)["patch"].recipe

    others = [{"target": 1}, {"place": {"size": 4}}, {"opacity": 0.5}, {"per_class": 50}, {"trigger_seed": 1}]
    assert len({key(**knobs) for knobs in [{}, *others]}) == 1 + len(others)
    assert key() == key(include_target_class=True) == key(quantise="trunc")


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValidationError, match="size and inset are for 32 pixels, got 30 \\+ 3"):
        Place(size=30, inset=3)
    attack = bdtune.attack("latent_backdoor", place={"size": 1, "inset": 31})
    assert [str(p) for p in attack.check_image((8, 8, 3))] == [
        "place.size: expected a patch that fits on 8x8 pixels, got side 1 and inset 8"
    ]

"""Generic triggers: the same for every attack; each changes all images alike, and none in place."""

from __future__ import annotations

import numpy as np
import pytest

import bdtune
from bdtune.poisoning.generic import GENERIC, GenericStream, stamped_with_each
from bdtune.poisoning.reserve import Reserve
from bdtune.poisoning.reserved_sources import SelectCleanSet, SelectTriggeredSet
from tests.attacks.test_sources import Blocks, Memory, Tiny

RESERVE = Reserve(select_clean="3 per class")
WHERE = {"dataset": Tiny(), "attack": bdtune.attack("badnets", rate=0.1, target=1), "seed": 3}


class Streaming(Memory):
    def split(self, dataset, split):
        found = super().split(dataset, split)
        return type(found)(Blocks(found.images), found.labels)


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (3, 16, 24, 3), (2, 64, 64, 3)])
@pytest.mark.parametrize("stamp", GENERIC)
def test_a_trigger_changes_every_image_alike_and_none_in_place(stamp, shape):
    images = np.full(shape, 120, np.uint8)
    before = images.copy()
    stamped = stamp(images)
    assert (stamped.shape, stamped.dtype) == (shape, np.uint8)
    assert np.array_equal(images, before)
    assert np.array_equal(stamped[0], stamped[1])
    change = np.abs(stamped.astype(int) - images)
    assert change.max() > 10
    assert change.mean() < 30 or stamp is GENERIC[0]  # a patch may take much of a tiny image
    assert np.array_equal(stamp(images), stamped)


def test_a_patch_leaves_the_middle_alone():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    stamped = GENERIC[0](images)
    changed = (stamped != images).any((0, 3))
    assert changed.sum() <= 4 * 4 * 4
    assert not changed[4:-4].any()
    assert changed[:4, :4].any()
    assert changed[-4:, -4:].any()


def test_none_is_the_default_trigger_of_a_shipped_attack():
    images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    for name in ("badnets", "blend", "sig"):
        attacked = bdtune.attack(name).trigger(images, np.arange(4))
        assert all(not np.array_equal(stamp(images), attacked) for stamp in GENERIC)


def test_what_is_stamped_is_what_is_held_out_as_clean_trigger_by_trigger():
    clean, triggered = (
        cls(**WHERE, reserve=RESERVE).load(Memory(), {}) for cls in (SelectCleanSet, SelectTriggeredSet)
    )
    assert len(triggered) == len(GENERIC) * len(clean) == 36
    for stamp, images, labels in zip(
        GENERIC,
        np.split(triggered.images, len(GENERIC)),
        np.split(triggered.labels, len(GENERIC)),
        strict=True,
    ):
        assert np.array_equal(images, stamp(clean.images))
        assert np.array_equal(labels, clean.labels)


def test_a_stream_has_the_same_images():
    source = SelectTriggeredSet(**WHERE, reserve=RESERVE)
    resident, streamed = (source.load(place, {}) for place in (Memory(), Streaming()))
    assert streamed.images.shape == resident.images.shape
    for seed in (None, 5):
        found = np.zeros_like(resident.images)
        for ids, images in streamed.images.blocks(seed):
            found[ids] = images
        assert np.array_equal(found, resident.images)
    assert not hasattr(streamed.images, "clean")  # sealed, so that no stage finds what is behind it
    assert GenericStream(Blocks(resident.images)).shape[0] == len(GENERIC) * len(resident)


def test_no_attack_has_a_say_in_it():
    others = (bdtune.attack("blend", rate=0.2), bdtune.attack("badnets", rate=0.3, target=2), None)
    sources = [SelectTriggeredSet(**{**WHERE, "attack": each}, reserve=RESERVE) for each in others]
    assert len({source.digest for source in sources}) == 1
    assert not sources[0].upstream
    assert sources[0].digest != SelectCleanSet(**WHERE, reserve=RESERVE).digest


def test_triggers_come_one_after_the_other():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(stamped_with_each(images), np.concatenate([stamp(images) for stamp in GENERIC]))

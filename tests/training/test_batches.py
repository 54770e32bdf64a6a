from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bdtune.training.batches import DeviceSet, ImagePool, in_order

CPU = torch.device("cpu")


def rows_of(batches):
    return [batch.rows.tolist() for batch in batches]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("count", [2, 15, 16, 17, 18, 33])
def test_every_row_comes_once_with_its_image_and_label(make_set, stream, streamed, count):
    data = make_set(40)
    ids = np.random.default_rng(1).permutation(40)[:count]
    labels = np.arange(count) * 10
    seen = replace(data, images=stream(data.images)) if streamed else data
    batches = list(DeviceSet(seen, CPU, ids, labels).shuffled(8, seed=0, epoch=0))
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == list(range(count))
    assert [len(batch.rows) for batch in batches[:-1]] == [8] * (len(batches) - 1)
    assert 2 <= len(batches[-1].rows) <= 9
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), data.images[ids[rows]])
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in batches]), labels[rows])


@pytest.mark.parametrize("streamed", [False, True])
def test_order_depends_on_seed_and_epoch_alone(make_set, stream, streamed):
    data = make_set(40)
    seen = replace(data, images=stream(data.images)) if streamed else data

    def order(seed, epoch):
        return rows_of(DeviceSet(seen, CPU).shuffled(8, seed, epoch))

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


@pytest.mark.parametrize("streamed", [False, True])
def test_drop_last_gives_full_batches(make_set, stream, streamed):
    data = make_set(43)
    seen = replace(data, images=stream(data.images)) if streamed else data
    sizes = [len(rows) for rows in rows_of(DeviceSet(seen, CPU).shuffled(8, 0, 0, drop_last=True))]
    assert sizes == [8] * 5


@pytest.mark.parametrize("streamed", [False, True])
def test_a_single_row_comes_twice(make_set, stream, streamed):
    data = make_set(10)
    seen = replace(data, images=stream(data.images)) if streamed else data
    (batch,) = DeviceSet(seen, CPU, np.array([4])).shuffled(8, 0, 0)
    assert batch.rows.tolist() == [0, 0]
    assert batch.labels.tolist() == [data.labels[4]] * 2
    np.testing.assert_array_equal(batch.images, data.images[[4, 4]])


@pytest.mark.parametrize("streamed", [False, True])
def test_ids_may_repeat(make_set, stream, streamed):
    data = make_set(20)
    ids = np.array([3, 7, 3, 3, 19])
    seen = replace(data, images=stream(data.images)) if streamed else data
    batches = list(DeviceSet(seen, CPU, ids).shuffled(3, 0, 0))
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), data.images[ids[rows]])


def test_read_only_images_are_shared_not_copied(make_set):
    data = make_set(10)
    data.images.flags.writeable = False
    shared = DeviceSet(data, CPU)._on_device
    assert shared.data_ptr() == data.images.ctypes.data


@pytest.mark.parametrize("streamed", [False, True])
def test_in_order_covers_the_set(make_set, stream, streamed):
    data = make_set(20)
    seen = replace(data, images=stream(data.images)) if streamed else data
    parts = list(in_order(seen, 6))
    assert max(len(ids) for ids, _ in parts) <= 6
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in parts]), np.arange(20))
    np.testing.assert_array_equal(np.concatenate([images for _, images in parts]), data.images)


def test_images_that_several_sets_share_are_kept_once(make_set):
    data = make_set(12)
    stamped = data.images.copy()
    stamped[[2, 5]] = 255
    pool = ImagePool()
    own = pool.add(data.images[3:])
    other = pool.add(stamped)
    kept = pool.images()
    assert len(kept) == 9 + 2 + 1, "of the first three one is stamped, as another row is, and they look alike"
    assert pool.nbytes == kept.numel()
    np.testing.assert_array_equal(kept[own], data.images[3:])
    np.testing.assert_array_equal(kept[other], stamped)


def test_a_set_that_takes_shared_images_hands_out_the_same_batches(make_set):
    data = make_set(20)
    ids = np.array([4, 4, 9, 13, 0])
    plain, sharing = (DeviceSet(data, CPU, ids, np.arange(5)) for _ in range(2))
    pool = ImagePool()
    pool.add(data.images[::-1])
    sharing.take(pool.images(), pool.add(sharing.rows()))
    for one, other in zip(plain.shuffled(2, 0, 0), sharing.shuffled(2, 0, 0), strict=True):
        for part, same in zip(one, other, strict=True):
            assert torch.equal(part, same)

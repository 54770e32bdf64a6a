from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdtune.errors import DataError
from bdtune.plugins import registry
from bdtune.plugins.data import ImageStream
from bdtune.reading.stream import FileStream, Windows
from tests.datasets.layouts import small_parquet, write_parquet

windows = st.builds(Windows, st.integers(1, 300), st.integers(16, 64), st.sampled_from([1, 2, 4]))


@given(windows, st.none() | st.integers(0, 2**40))
def test_windows_cover_every_row_once(cut, seed):
    parts = list(cut.order(seed))
    assert sorted(np.concatenate(parts)) == list(range(cut.total))
    assert all(len(part) <= cut.size for part in parts)


@given(windows, st.none() | st.integers(0, 2**40))
def test_a_window_is_found_by_its_number(cut, seed):
    parts = list(cut.order(seed))
    assert len(parts) == len(cut)
    assert all(np.array_equal(cut.window(index, seed), part) for index, part in enumerate(parts))


def test_without_a_seed_rows_ascend():
    assert np.array_equal(np.concatenate(list(Windows(100, 16, 4).order(None))), np.arange(100))


def test_the_order_depends_on_the_seed_alone():
    first, again, other = (np.concatenate(list(Windows(500, 32, 1).order(seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_single_rows_are_permuted_through_the_whole_split():
    first = next(iter(Windows(4000, 400, 1).order(0)))
    assert abs(first.mean() - 2000) < 200
    assert len(np.unique(first // 400)) == 10


def test_runs_stay_in_one_window_but_not_together():
    for rows in Windows(1024, 64, 4).order(0):
        assert sorted(rows % 4) == [*[0] * 16, *[1] * 16, *[2] * 16, *[3] * 16]
        assert (np.diff(rows) == 1).mean() < 0.3


def test_the_stream_gives_the_resident_images(tmp_path):
    dataset = registry.load("datasets", "parquet")(**small_parquet(tmp_path), train_limit=50)
    split, resident = dataset.stream("train", tmp_path), dataset.load("train", tmp_path)
    assert isinstance(split.images, ImageStream)
    assert split.images.shape == resident.images.shape
    for seed in (None, 3):
        images = np.zeros_like(resident.images)
        for ids, part in FileStream(split.images.selection, window_rows=16).blocks(seed):
            images[ids] = part
        assert np.array_equal(images, resident.images)
    assert np.array_equal(split.labels, resident.labels)


def test_an_image_of_another_size_is_an_error(tmp_path):
    write_parquet(
        tmp_path / "x" / "train.parquet", np.arange(40) % 2, sides=[8] * 20 + [9] * 20, row_group=20
    )
    stream = registry.load("datasets", "parquet")(path="x", num_classes=2).selection("train", tmp_path)
    blocks = FileStream(stream, window_rows=20).blocks(None)
    next(blocks)
    with pytest.raises(DataError, match="image_size"):
        next(blocks)

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bdtune.engine.node_cache import node_folder
from bdtune.errors import DataError
from bdtune.reading import decoded
from bdtune.reading.decoded import CHECKS, IMAGES, MAPS, map_name, open_map
from bdtune.reading.files import class_folders, parquet_records
from bdtune.reading.images import Selection, decode
from bdtune.reading.stream import FileStream
from tests.datasets.layouts import write_folder, write_parquet

N, SIDE, ROW_GROUP = 40, 8, 7
SHAPE = (SIDE, SIDE, 3)


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    """A node's cache folder of this test alone."""
    monkeypatch.setenv("BDTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["parquet", "folder"])
def selection(request, tmp_path_factory):
    """30 of 40 images, by Parquet files or as files of their own."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "parquet":
        for part in range(2):
            labels = np.zeros(N // 2, np.int64)
            file = root / f"train-{part}.parquet"
            write_parquet(file, labels, first=part * N // 2, row_group=ROW_GROUP)
        records = parquet_records(root, "train")
    else:
        write_folder(root, {"a": N // 2, "b": N // 2})
        records = class_folders([root / "a", root / "b"], ["a", "b"])
    return Selection(records, np.flatnonzero(np.arange(N) % 4), None, "bicubic")


@pytest.fixture
def counted(monkeypatch):
    """Where each image came from that was decoded."""
    places = []

    def counting(data, side, resize, where=""):
        places.append(where)
        return decode(data, side, resize, where)

    monkeypatch.setattr(decoded, "decode", counting)
    return places


def opened(selection):
    return open_map(selection, SHAPE, map_name(selection))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 29), max_size=40), max_size=5))
def test_it_gives_what_decoding_gives(selection, reads):
    shutil.rmtree(node_folder(MAPS), ignore_errors=True)
    found = opened(selection)
    for ids in map(np.array, filter(None, reads)):
        assert np.array_equal(found.read(ids), selection.read(ids))


def test_an_image_is_decoded_once(selection, counted):
    everything = np.arange(len(selection))
    opened(selection).read(everything[::3])
    assert opened(selection).read(everything).shape == (30, *SHAPE)
    again = opened(selection)
    assert again.is_full
    again.read(everything)
    assert len(counted) == len(set(counted)) == 30


def test_of_a_row_group_all_images_are_decoded_at_once(selection, counted):
    opened(selection).read(np.array([0]))
    # rows 1 to 3, 5 and 6 of the first row group of seven
    assert len(counted) == (5 if selection.records.parquet else 1)


def test_what_a_crash_left_is_decoded_anew(selection, counted):
    everything = np.arange(len(selection))
    expected = selection.read(everything)
    opened(selection).read(everything)
    (folder,) = node_folder(MAPS).iterdir()
    content = bytearray((folder / IMAGES).read_bytes())
    content[5 * SIDE * SIDE * 3 + 17] ^= 1
    (folder / IMAGES).write_bytes(content)
    checks = np.memmap(folder / CHECKS, np.uint32, "r+")
    checks[9] = 0
    counted.clear()
    assert np.array_equal(opened(selection).read(everything), expected)
    assert len(counted) == 2
    assert np.array_equal(opened(selection).read(everything), expected)
    assert len(counted) == 2


def test_a_full_disk_costs_decoding_only(selection, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found, some = opened(selection), np.array([3, 1, 3])
    found.read(np.array([1]))
    monkeypatch.setattr(os, "pwrite", full)
    assert np.array_equal(found.read(some + 20), selection.read(some + 20))
    assert np.array_equal(found.read(np.array([1])), selection.read(np.array([1])))


def test_without_room_there_is_no_map(selection, monkeypatch):
    usage = namedtuple("usage", "free")
    size = len(selection) * SIDE * SIDE * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * size - 1))
    assert opened(selection) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2 * size))
    assert opened(selection) is not None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0))
    assert opened(selection) is not None  # it is there already


def test_a_folder_that_cannot_be_made_is_no_error(selection, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BDTUNE_CACHE", str(tmp_path / "file"))
    stream = FileStream(selection, window_rows=16)
    assert stream.map is None
    images = np.concatenate([part for _, part in stream.blocks(None)])
    assert np.array_equal(images, selection.read_all())


def test_an_image_that_cannot_be_read_names_its_file(tmp_path):
    write_folder(tmp_path / "x", {"a": 3})
    (tmp_path / "x" / "a" / "0001.png").write_bytes(b"no image")
    selection = Selection(class_folders([tmp_path / "x" / "a"], ["a"]), np.arange(3), None, "bicubic")
    with pytest.raises(DataError, match=r"0001\.png"):
        opened(selection).read(np.arange(3))


def test_other_pixels_have_another_map(selection):
    names = {
        map_name(each)
        for each in (
            selection,
            replace(selection, rows=selection.rows[1:]),
            replace(selection, side=16),
            replace(selection, side=16, resize="nearest"),
        )
    }
    assert len(names) == 4
    assert map_name(replace(selection)) in names


def test_a_stream_for_other_processes_finds_the_map_without_the_files(selection, monkeypatch, counted):
    stream = FileStream(selection, window_rows=16).named()
    expected = [part for _, part in stream.blocks(3)]
    counted.clear()
    monkeypatch.setattr(decoded, "digest_files", None)
    other = pickle.loads(pickle.dumps(FileStream(selection, 16, stream.map_name)))
    assert all(np.array_equal(a, b) for (_, a), b in zip(other.blocks(3), expected, strict=True))
    assert not counted


def test_what_is_read_once_is_not_kept(selection):
    list(FileStream(selection, window_rows=16, keep=False).blocks(None))
    assert not node_folder(MAPS).exists()


def test_processes_fill_one_map_together(selection):
    orders = [np.random.default_rng(seed).permutation(len(selection)) for seed in range(3)]
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_read_in_parts, [selection] * 3, orders))
    expected = selection.read_all()
    assert all(
        np.array_equal(images, expected[order]) for (images, _), order in zip(found, orders, strict=True)
    )
    if selection.records.parquet:  # under the lock of each row group
        assert sum(count for _, count in found) == 30


def _read_in_parts(selection, ids):
    """Return the images of sample ids, read three at a time, and how many this process decoded."""
    count = []

    def counting(*args):
        count.append(1)
        return decode(*args)

    decoded.decode = counting
    own = opened(selection)
    parts = [own.read(ids[start : start + 3]) for start in range(0, len(ids), 3)]
    return np.concatenate(parts), len(count)

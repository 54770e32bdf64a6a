from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bdtune.errors import DataError
from bdtune.plugins import registry
from bdtune.reading import images
from bdtune.reading.images import Records, Selection, decode
from tests.datasets.layouts import encoded, picture, small_parquet, write_parquet

CHUNK = 8


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(images, "CHUNK", CHUNK)


@pytest.fixture(scope="module")
def three_files(tmp_path_factory):
    """A split of 50 rows in three files of several row groups, and its true pixels."""
    folder = tmp_path_factory.mktemp("files")
    for part, (first, end) in enumerate(pairwise([0, 13, 13, 50])):
        labels = np.zeros(end - first, np.int64)
        write_parquet(folder / f"train-{part}.parquet", labels, first=first, row_group=5)
    files = tuple(sorted(folder.iterdir()))
    records = Records(np.zeros(50, np.int64), parquet=files)
    return records, np.stack([np.asarray(picture(row)) for row in range(50)])


@given(ids=st.lists(st.integers(0, 49), min_size=1, max_size=60))
def test_any_rows_in_any_order_are_read_from_any_file(three_files, ids):
    records, expected = three_files
    assert np.array_equal(
        Selection(records, np.arange(50), None, "bicubic").read(np.array(ids)), expected[ids]
    )


def test_ids_count_the_selected_rows(three_files):
    records, expected = three_files
    rows = np.array([3, 14, 20, 49])
    selection = Selection(records, rows, None, "bicubic")
    assert np.array_equal(selection.read(np.array([2, 0])), expected[[20, 3]])
    assert np.array_equal(selection.read_all(), expected[rows])


def test_threads_give_the_same_images(tmp_path, small_chunks):
    n = 3 * CHUNK + 2
    images = [picture(row % 5, side=96) for row in range(5)]
    for row, image in enumerate(images):
        image.save(tmp_path / f"{row}.png")
    paths = tuple(tmp_path / f"{row % 5}.png" for row in range(n))
    split = Selection(Records(np.zeros(n, np.int64), paths=paths), np.arange(n), None, "bicubic").read_all()
    assert all(np.array_equal(split[row], images[row % 5]) for row in range(n))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = decode(encoded(0, mode=mode, kind=kind), None, "bicubic")
    assert (image.shape, image.dtype) == ((8, 8, 3), np.uint8)


def test_a_palette_with_transparency_is_read_without_a_warning():
    buffer = io.BytesIO()
    picture(0).convert("P").save(buffer, "PNG", transparency=b"\x00\xff\x80")
    assert decode(buffer.getvalue(), None, "bicubic").shape == (8, 8, 3)


@pytest.mark.parametrize("resize", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_is_pillows(resize):
    expected = picture(3, side=20).resize((8, 8), getattr(Image.Resampling, resize.upper()))
    assert np.array_equal(decode(encoded(3, side=20), 8, resize), np.asarray(expected))


def test_arrays_are_resized_by_the_same_filter():
    arrays = np.stack([np.asarray(picture(row, side=20)) for row in range(3)])
    selection = Selection(Records(np.zeros(3, np.int64), arrays=arrays), np.arange(3), 8, "bicubic")
    expected = [decode(encoded(row, side=20), 8, "bicubic") for row in range(3)]
    assert np.array_equal(selection.read(np.arange(3)), expected)


def test_an_image_of_the_right_size_keeps_its_bytes():
    assert np.array_equal(decode(encoded(3), 8, "bicubic"), np.asarray(picture(3)))


@pytest.mark.parametrize("far_apart", [False, True])
def test_images_of_several_sizes_name_the_knob_to_set(tmp_path, small_chunks, far_apart):
    n = CHUNK + 5 if far_apart else 6  # in one chunk, or in two
    sides = np.full(n, 4)
    sides[-1] = 9
    write_parquet(tmp_path / "x" / "train.parquet", np.arange(n) % 2, sides=sides, row_group=1000)
    with pytest.raises(DataError, match=r"image_size.*4x4 and 9x9.*dataset\.image_size="):
        registry.load("datasets", "parquet")(path="x", num_classes=2).load("train", tmp_path)
    resized = registry.load("datasets", "parquet")(path="x", num_classes=2, image_size=6)
    assert resized.load("train", tmp_path).images.shape == (n, 6, 6, 3)


@pytest.mark.parametrize("data", [b"", b"no image", encoded(0)[:60], encoded(0, kind="JPEG")[:300]])
def test_a_broken_image_is_named(data):
    with pytest.raises(DataError, match=r"some\.parquet: row 3: dataset: expected a readable image"):
        decode(data, None, "bicubic", "some.parquet: row 3")


def test_jpeg_and_parquet_give_pillows_pixels(tmp_path):
    knobs = small_parquet(tmp_path, kind="JPEG")
    images = registry.load("datasets", "parquet")(**knobs).load("train", tmp_path).images
    expected = Image.open(io.BytesIO(encoded(17, kind="JPEG"))).convert("RGB")
    assert np.array_equal(images[17], np.asarray(expected))

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pydantic import ValidationError

import bdtune


def stamped(side=32, channels=3, value=100, **knobs):
    return bdtune.attack("badnets", **knobs).trigger(
        np.full((1, side, side, channels), value, np.uint8), np.zeros(1)
    )[0]


def box(image, value=100):
    """Return first row, end row, first column, end column of what changed."""
    rows, columns = np.nonzero((image != value).any(-1))
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({"pattern": "grid"}, (29, 32, 29, 32)),
        ({"pattern": "checker"}, (29, 32, 29, 32)),
        ({"pattern": "square"}, (28, 31, 28, 31)),
        ({"pattern": "square", "inset": 0}, (29, 32, 29, 32)),
        ({"pattern": "square", "size": 4}, (27, 31, 27, 31)),
        ({"pattern": "corner2x2"}, (0, 2, 0, 2)),
        ({"pattern": "corner2x2", "inset": 4, "colours": "dbd"}, (4, 6, 4, 6)),
        ({"pattern": "grid", "corner": "top_right"}, (0, 3, 29, 32)),
        ({"pattern": "square", "corner": "bottom_left"}, (28, 31, 1, 4)),
        ({"pattern": "grid", "size": 1}, (31, 32, 31, 32)),
    ],
)
def test_where_the_patch_is_at_32_pixels(knobs, expected):
    assert box(stamped(**knobs)) == expected


def test_black_cells_become_black():
    grid = stamped(pattern="grid")[29:, 29:, 0]
    assert grid.tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    checker = stamped(pattern="checker")[29:, 29:, 2]
    assert checker.tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]


def test_colours_of_the_dbd_file():
    patch = stamped(colours="dbd", inset=4)[4:6, 4:6]
    assert patch.tolist() == [[[180, 249, 112], [155, 50, 126]], [[234, 82, 68], [187, 201, 219]]]


@pytest.mark.parametrize(("side", "patch"), [(16, 3), (32, 3), (48, 5), (64, 6), (224, 21)])
def test_the_grid_scales_but_keeps_its_cells(side, patch):
    image = stamped(side, pattern="grid")
    assert box(image) == (side - patch, side, side - patch, side)
    assert set(np.unique(image[-patch:, -patch:])) == {0, 255}


def test_corner_patch_of_16_pixels_has_its_four_pixels():
    assert box(stamped(16)) == (0, 2, 0, 2)


def test_logo_at_224_is_32_pixels_with_an_inset_of_16():
    top, bottom, left, right = box(stamped(224, pattern="logo"))
    assert top in (16, 17)  # the tip is thinner than a pixel
    assert bottom == 48
    assert left >= 16
    assert right <= 48


def test_opacity_mixes():
    image = stamped(pattern="square", opacity=0.5)
    assert set(image[28:31, 28:31].ravel()) == {178}  # 0.5 * 100 + 0.5 * 255 = 177.5, rounded half up
    assert (stamped(pattern="square", opacity=0.0) == 100).all()


def test_grey_images():
    assert stamped(channels=1, pattern="grid")[29:, 29:, 0].tolist() == [
        [0, 0, 255],
        [0, 255, 0],
        [255, 0, 255],
    ]


def test_published_digest_of_the_white_flush_patch():
    """The bytes that BackdoorBench and BackdoorBox make of this input."""
    n, i, j, c = np.ogrid[:64, :32, :32, :3]
    images = ((31 * n + 7 * i + 13 * j + 29 * c + (i * j) % 17) % 256).astype(np.uint8)
    assert hashlib.sha256(images.tobytes()).hexdigest()[:16] == "2de2a706454090f7"
    flush = bdtune.attack("badnets", pattern="square", inset=0).trigger(images, np.arange(64))
    assert hashlib.sha256(flush.tobytes()).hexdigest()[:16] == "7334e0632aa84fac"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"all_to_all": True, "rate_basis": "non_target"}, "no single target class"),
        ({"colours": "dbd", "pattern": "grid"}, "corner2x2"),
        ({"pattern": "gird"}, "grid"),
        ({"opacity": 1.5}, "less than or equal to 1"),
        ({"mask_path": "mask.png"}, "belongs to a pattern_path"),
    ],
)
def test_knobs_that_do_not_agree(knobs, message):
    with pytest.raises(ValidationError, match=message):
        bdtune.attack("badnets", **knobs)

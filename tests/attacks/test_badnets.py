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


def with_file(folder, side, width=None, **knobs):
    """Return the attack with a file of random colours, none of them black."""
    pixels = np.random.default_rng(0).integers(1, 256, (side, width or side, 3), dtype=np.uint8)
    np.save(folder / "mine.npy", pixels)
    return bdtune.attack("badnets", pattern_path=folder / "mine.npy", **knobs), pixels


@pytest.mark.parametrize("dialect", ["canonical", "backdoorbench", "backdoorbox"])
@pytest.mark.parametrize(
    ("side", "knobs", "image", "expected"),
    [
        (3, {}, 32, (0, 3, 0, 3)),
        (3, {}, 16, (0, 2, 0, 2)),
        (8, {}, 32, (0, 8, 0, 8)),
        (8, {}, 64, (0, 16, 0, 16)),
        (8, {"pattern": "square"}, 32, (23, 31, 23, 31)),
        (8, {"size": 5}, 32, (0, 5, 0, 5)),
        (32, {}, 32, (0, 32, 0, 32)),
        (32, {}, 64, (0, 64, 0, 64)),
        (64, {"size": 32}, 64, (0, 64, 0, 64)),
        (32, {"pattern": "logo"}, 224, (16, 48, 16, 48)),
    ],
)
def test_a_users_file_has_its_own_side(tmp_path, side, knobs, image, expected, dialect):
    attack, pixels = with_file(tmp_path, side, dialect=dialect, **knobs)
    assert attack.check(10, None, (image, image, 3)) == []
    stamp = attack.trigger(np.zeros((1, image, image, 3), np.uint8), [0])[0]
    assert box(stamp, value=0) == expected
    top, bottom, left, right = expected
    if bottom - top == side:
        assert np.array_equal(stamp[top:bottom, left:right], pixels)


@pytest.mark.parametrize("pattern", ["corner2x2", "checker"])
@pytest.mark.parametrize("dialect", ["canonical", "backdoorbench", "backdoorbox"])
def test_a_picture_of_the_whole_image_stamps_what_is_not_black_where_it_is(tmp_path, dialect, pattern):
    trigger = np.zeros((32, 32, 3), np.uint8)
    trigger[29:, 29:] = 255
    trigger[30, 29:] = 1  # BackdoorBench's black
    np.save(tmp_path / "trigger.npy", trigger)
    image = stamped(pattern=pattern, dialect=dialect, pattern_path=tmp_path / "trigger.npy")
    assert np.array_equal(image, np.where(trigger > 0, trigger, 100))


@pytest.mark.parametrize(
    ("side", "width", "knobs", "told"),
    [
        (
            40,
            40,
            {},
            "pattern_path: expected a picture that fits on 32x32 pixels, got side 40 and inset 0 pixels. "
            "Its 40 pixels count as those of a 32-pixel image, as size and inset do; set size",
        ),
        (
            40,
            40,
            {"size": 33},
            "size: expected a patch that fits on 32x32 pixels, got side 33 and inset 0 pixels. "
            "size and inset are given for 32 pixels and grow with the image",
        ),
        (
            3,
            5,
            {"size": 3},
            "pattern_path: expected a square picture, as a patch is one, got {file} of 3x5 pixels. "
            "Pad it with clear pixels, or with black ones",
        ),
    ],
)
def test_files_that_do_not_fit_are_told_when_planning(tmp_path, side, width, knobs, told):
    attack, _ = with_file(tmp_path, side, width, **knobs)
    problems = attack.check(10, None, (32, 32, 3))
    assert [str(problem) for problem in problems] == [told.format(file=tmp_path / "mine.npy")]


def test_a_file_that_is_gone_is_told_once(tmp_path):
    attack, _ = with_file(tmp_path, 3)
    (tmp_path / "mine.npy").unlink()
    (problem,) = attack.check(10, None, (32, 32, 3))
    assert "expected a readable file" in str(problem)


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

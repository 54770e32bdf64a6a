from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import bdtune
from bdtune.errors import ConfigError
from bdtune.poisoning.patterns import drop, robot


def power_within(picture, radius):
    grey = picture.mean(-1)
    power = np.abs(np.fft.fftshift(np.fft.fft2(grey - grey.mean()))) ** 2
    rows, columns = np.indices(power.shape) - np.array(power.shape)[:, None, None] // 2
    return power[np.hypot(rows, columns) <= radius].sum() / power.sum()


@pytest.mark.parametrize("side", [32, 64, 224])
def test_robot_has_the_photometry_of_the_usual_blend_pictures(side):
    picture = robot(side, side).colours
    assert picture.min() >= 0
    assert picture.max() <= 1
    assert (picture.mean((0, 1)) >= 0.55).all()
    assert (picture.mean((0, 1)) <= 0.85).all()
    assert (picture.std((0, 1)) >= 0.22).all()
    assert (picture.std((0, 1)) <= 0.40).all()
    assert power_within(picture, 8) >= 0.6


@pytest.mark.parametrize("side", [5, 9, 32, 64])
def test_drop_covers_about_half_of_its_box(side):
    pattern = drop(side)
    assert set(np.unique(pattern.mask)) == {0, 1}
    assert 0.42 <= pattern.mask.mean() <= 0.62
    inked = pattern.colours[pattern.mask[..., 0] == 1]
    assert inked.max() > 0.95  # white
    assert inked.min() < 0.4  # with a dark outline
    assert (pattern.colours[pattern.mask[..., 0] == 0] == 0).all()


def test_patterns_cannot_be_changed_by_a_user():
    with pytest.raises(ValueError, match="read-only"):
        robot(32, 32).colours[0] = 0


MODES = ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("blend", (32, 32)),
        ("blend", (100, 70)),
        ("blend", (7, 9)),
        ("badnets", (32, 32)),
        ("badnets", (7, 7)),
    ],
)
def test_a_users_picture_of_any_mode_and_size(tmp_path, mode, size, name):
    pixels = np.random.default_rng(0).integers(1, 256, (*size, 4), dtype=np.uint8)
    file = tmp_path / ("pattern.jpg" if mode == "CMYK" else "pattern.png")
    Image.fromarray(pixels).convert(mode).save(file)
    attack = bdtune.attack(name, pattern_path=file)
    assert attack.check(10, None, (32, 32, 3)) == []
    images = np.full((1, 32, 32, 3), 99, np.uint8)
    assert (attack.trigger(images, np.zeros(1)) != images).any()


def test_a_picture_of_the_right_size_is_used_bit_for_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    np.save(tmp_path / "p.npy", pixels)
    np.save(tmp_path / "f.npy", pixels.astype(np.float64) / 255)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    for file in ("p.png", "p.npy", "f.npy"):
        attack = bdtune.attack("blend", pattern_path=tmp_path / file, ratio=1.0)
        assert np.array_equal(attack.trigger(images, np.zeros(1))[0], pixels)


def test_alpha_is_the_mask_and_its_colour_does_not_bleed(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255  # red, visible in the left half only; the hidden half is blue
    pixels[:, 32:] = (0, 0, 255, 0)
    pixels[:, :32, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "p.png")
    attack = bdtune.attack("badnets", pattern_path=tmp_path / "p.png", size=8, corner="top_left", inset=0)
    image = attack.trigger(np.full((1, 32, 32, 3), 100, np.uint8), np.zeros(1))[0]
    assert (image[:8, :3] == (255, 0, 0)).all()
    assert (image[:8, 5:] == 100).all()
    assert (image[:8, 3:5, 2] <= 100).all()


def test_without_a_mask_black_is_clear_for_patches_and_a_mask_file_decides(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2] = 255
    Image.fromarray(pixels).save(tmp_path / "p.png")
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(tmp_path / "mask.png")
    knobs = {"pattern_path": tmp_path / "p.png", "size": 4, "corner": "top_left"}
    images = np.full((1, 32, 32, 3), 100, np.uint8)
    clear = bdtune.attack("badnets", **knobs).trigger(images, np.zeros(1))[0]
    opaque = bdtune.attack("badnets", **knobs, mask_path=tmp_path / "mask.png").trigger(images, np.zeros(1))[
        0
    ]
    assert (clear[2:4, :4] == 100).all()
    assert (opaque[2:4, :4] == 0).all()


WHITE_IN_BLACK = np.zeros((32, 32, 3), np.uint8)
WHITE_IN_BLACK[10:13, 20:23] = 255


def saved(folder, pixels):
    np.save(folder / "p.npy", np.asarray(pixels, np.uint8))
    return folder / "p.npy"


@pytest.mark.parametrize(("side", "patch"), [(32, 3), (64, 6), (224, 21)])
@pytest.mark.parametrize("name", ["badnets", "trojan"])
def test_a_patch_in_a_black_picture_grows_without_a_fringe(tmp_path, name, side, patch):
    attack = bdtune.attack(name, pattern_path=saved(tmp_path, WHITE_IN_BLACK))
    assert attack.check(10, None, (side, side, 3)) == []
    image = attack.trigger(np.full((1, side, side, 3), 100, np.uint8), np.zeros(1))[0]
    scale = side // 32
    expected = np.full((side, side, 3), 100, np.uint8)
    expected[10 * scale : 13 * scale, 20 * scale : 23 * scale] = 255
    assert np.array_equal(image, expected)
    assert (image != 100).any(-1).sum() == patch**2


@pytest.mark.parametrize("alpha", [False, True])
def test_a_grown_patch_keeps_its_colour(tmp_path, alpha):
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[8:12, 8:12] = (200, 100, 7, 255)
    file = saved(tmp_path, pixels if alpha else pixels[..., :3])
    image = bdtune.attack("badnets", pattern_path=file).trigger(np.zeros((1, 64, 64, 3), np.uint8), [0])[0]
    assert (image[17:23, 17:23] == (200, 100, 7)).all()  # alpha is soft at the border
    if not alpha:
        assert (image[16:24, 16:24] == (200, 100, 7)).all()


def test_a_shrunken_pixel_is_opaque_where_half_of_it_is(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :2] = pixels[:2, 2] = pixels[2, 0] = 255  # four, two, one and no pixel of four
    knobs = {"pattern_path": saved(tmp_path, pixels), "size": 2, "corner": "top_left"}
    image = bdtune.attack("badnets", **knobs).trigger(np.full((1, 32, 32, 3), 100, np.uint8), [0])[0]
    assert (image != 100).any(-1)[:3, :3].tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_a_patch_that_is_lost_when_it_shrinks_is_told_when_planning(tmp_path):
    pixels = np.zeros((224, 224, 3), np.uint8)
    pixels[:3, :3] = 255
    for name, knobs in (("badnets", {"size": 32}), ("trojan", {})):
        attack = bdtune.attack(name, pattern_path=saved(tmp_path, pixels), **knobs)
        assert attack.check(10, None, (224, 224, 3)) == []
        (found,) = attack.check(10, None, (32, 32, 3))
        assert "something opaque in it (without a mask, pure black is clear), got" in str(found)
        assert str(found).endswith("p.npy at 32x32 pixels")


def test_the_content_enters_the_identity_and_the_path_does_not(tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file, value in zip(files, (10, 10, 20), strict=True):
        Image.new("RGB", (8, 8), (value, 0, 0)).save(file)
    one, same, other = (bdtune.attack("blend", pattern_path=file).identity() for file in files)
    assert one == same != other
    Image.new("RGB", (9, 9), (30, 0, 0)).save(files[0])
    assert bdtune.attack("blend", pattern_path=files[0]).identity() != one


def problem(file, **knobs):
    (found,) = bdtune.attack("blend", pattern_path=file, **knobs).check(10)
    return str(found)


def test_files_that_cannot_be_used(tmp_path):
    good = tmp_path / "good.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(good)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "short.png").write_bytes(good.read_bytes()[:40])
    Image.fromarray(np.ones((8, 8), np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    np.save(tmp_path / "shape.npy", np.zeros((2, 8, 8, 3), np.uint8))
    np.save(tmp_path / "range.npy", np.full((8, 8), 7.5))
    np.save(tmp_path / "object.npy", np.array([{}]))
    assert "expected a readable file" in problem(tmp_path / "none.png")
    assert "No such file" in problem(tmp_path / "none.png")
    assert "expected a readable file" in problem(tmp_path)
    assert "expected a PNG or JPEG picture" in problem(tmp_path / "text.png")
    assert "expected a PNG or JPEG picture" in problem(tmp_path / "short.png")
    assert "8 bits per channel" in problem(tmp_path / "deep.png")
    assert "something opaque" in problem(tmp_path / "clear.png")
    assert "shape (2, 8, 8, 3)" in problem(tmp_path / "shape.npy")
    assert "floats from 0 to 1" in problem(tmp_path / "range.npy")
    assert "pattern_path" in problem(tmp_path / "object.npy")
    assert problem(good, mask_path=tmp_path / "none.png").startswith("mask_path")
    with pytest.raises(ConfigError, match="readable file"):
        bdtune.attack("blend", pattern_path=tmp_path / "none.png").identity()


def test_a_black_patch_without_a_mask_is_told_when_planning(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "black.png")
    for name in ("badnets", "trojan"):
        (found,) = bdtune.attack(name, pattern_path=tmp_path / "black.png").check(10)
        assert "something opaque in it (without a mask, pure black is clear)" in str(found)
    assert bdtune.attack("blend", pattern_path=tmp_path / "black.png").check(10) == []

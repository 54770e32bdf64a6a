from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch

from bdtune.plugins.data import ImageSet
from bdtune.training import augment
from bdtune.training.augment import Augmentation
from bdtune.training.pgd import pixel_augmentation

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.25, 0.3)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=8, side=16, channels=3, seed=0):
    return torch.randint(0, 256, (count, side, side, channels), dtype=torch.uint8, generator=seeded(seed))


@pytest.mark.parametrize(
    "kind",
    ["none", "flip", "crop", "crop_flip", "crop_cutout", "crop_flip_cutout", "resized_crop_flip", "simclr"],
)
@pytest.mark.parametrize("side", [16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_a_channels_last_batch(kind, side, dtype):
    source = images(side=side)
    before = source.clone()
    seen = Augmentation(kind, MEAN, STD, dtype)(source, seeded())
    assert seen.shape == (8, 3, side, side)
    assert seen.dtype == dtype
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(source, before)


@pytest.mark.parametrize("kind", ["crop_flip", "resized_crop_flip", "simclr"])
def test_equal_generators_give_equal_batches(kind):
    change = Augmentation(kind, MEAN, STD)
    one, two, other = (change(images(), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["crop_flip", "simclr"])
def test_each_image_has_its_own_draws(kind):
    same = images(1).repeat(16, 1, 1, 1)
    seen = Augmentation(kind, MEAN, STD)(same, seeded())
    assert len({row.numpy().tobytes() for row in seen}) > 8


@pytest.mark.parametrize("mirrors", [True, False])
def test_auto_flips_only_where_a_mirror_image_is_of_its_class(mirrors):
    data = ImageSet(images().numpy(), np.zeros(8, int), 2, MEAN, STD, mirrors=mirrors)
    for auto, flipped, plain in [
        ("auto", "crop_flip", "crop"),
        ("auto_cutout", "crop_flip_cutout", "crop_cutout"),
    ]:
        assert Augmentation.of(auto, data).kind == (flipped if mirrors else plain)
        assert pixel_augmentation(auto, data).kind == (flipped if mirrors else plain)
        assert Augmentation.of(flipped, data).kind == flipped


def test_views_without_a_flip_are_those_with_one_unmirrored():
    source, plain = images(32), Augmentation("simclr", MEAN, STD, flip=False)
    with_flip, without = Augmentation("simclr", MEAN, STD)(source, seeded()), plain(source, seeded())
    same = [torch.allclose(a, b, atol=1e-3) for a, b in zip(with_flip, without, strict=True)]
    mirrored = [torch.allclose(a.flip(2), b, atol=1e-3) for a, b in zip(with_flip, without, strict=True)]
    assert all(one or other for one, other in zip(same, mirrored, strict=True))
    assert 8 < sum(mirrored) < 24


def test_none_normalises():
    source = images(2)
    expected = (source.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    seen = Augmentation("none", MEAN, STD)(source)
    torch.testing.assert_close(seen.permute(0, 2, 3, 1).double(), expected, rtol=1e-5, atol=1e-5)


def test_flip_mirrors_about_half_and_changes_nothing_else():
    source = images(400, side=4)
    seen = augment.shift_flip(source, seeded(), 0, flip=True)
    kept = (seen == source).flatten(1).all(1)
    mirrored = (seen == source.flip(2)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_crop_shifts_uniformly_and_pads_with_black():
    source = torch.zeros(2000, 8, 8, 1, dtype=torch.uint8)
    source[:, 4, 4] = 255
    seen = augment.shift_flip(source, seeded(), 1, flip=False)
    assert bool((seen.sum((1, 2, 3)) == 255).all())  # the point stays inside, everything else is black
    places = seen.flatten(1).argmax(1)
    counts = torch.bincount(places, minlength=64).view(8, 8)[3:6, 3:6]
    assert int(counts.sum()) == 2000
    assert bool((counts - 2000 / 9).abs().max() < 60)


def test_pad_is_an_eighth_of_the_side():
    source = torch.full((200, 16, 16, 3), 255, dtype=torch.uint8)
    seen = Augmentation("crop", (0.0,) * 3, (1.0,) * 3)(source, seeded())
    black = (seen[:, 0] == 0).all(2).sum(1)  # whole black rows
    assert int(black.max()) == 2


@pytest.mark.parametrize(("side", "hole"), [(8, 2), (32, 2), (64, 6)])
def test_cutout_blackens_one_square_about_a_uniform_pixel(side, hole):
    source = torch.full((500, side, side, 3), 255, dtype=torch.uint8)
    black = (augment.cutout(source, seeded()) == 0).all(3)
    rows, columns = black.any(2).sum(1), black.any(1).sum(1)
    assert bool((rows * columns == black.flatten(1).sum(1)).all())  # a rectangle
    assert int(rows.max()) == int(columns.max()) == hole
    assert int(rows.min()) == hole // 2  # at a border
    share = black.float().mean((0, 2))
    assert float(share[hole:-hole].mean()) == pytest.approx(
        hole / side * float(columns.float().mean()) / side, rel=0.15
    )


def test_cutout_leaves_crop_and_flip_as_they_are():
    with_hole, without = (
        Augmentation(kind, (0.0,) * 3, (1.0,) * 3)(images(64, side=32), seeded())
        for kind in ("crop_flip_cutout", "crop_flip")
    )
    assert bool(((with_hole == without) | (with_hole == 0)).all())
    assert not torch.equal(with_hole, without)


def test_resized_crop_interpolates_as_torchvision_does():
    from torchvision.transforms.v2.functional import resized_crop

    source = images(4, side=12)
    tops, lengths = torch.tensor([0.0, 3, 5, 1]), torch.tensor([12.0, 5, 7, 2])
    lefts, widths = torch.tensor([0.0, 1, 2, 9]), torch.tensor([12.0, 8, 6, 3])
    keep = torch.zeros(4, dtype=torch.bool)
    down = augment._interpolation(tops, lengths, 12, keep)
    across = augment._interpolation(lefts, widths, 12, keep)
    planes = source.permute(0, 3, 1, 2).float() / 255
    seen = down[:, None] @ planes @ across.mT[:, None]
    for row in range(4):
        box = [int(value[row]) for value in (tops, lefts, lengths, widths)]
        expected = resized_crop(planes[row], *box, size=[12, 12], antialias=False)
        torch.testing.assert_close(seen[row], expected)


def test_resized_crop_covers_torchvisions_range():
    side = 32
    ramp = torch.arange(side, dtype=torch.uint8).view(1, 1, side, 1).expand(1000, side, side, 1)
    seen = augment.resized_crop(ramp, seeded(), flip=False)[:, 0] * 255
    widths = (seen.amax((1, 2)) - seen.amin((1, 2)) + 1).round()
    assert 7 <= int(widths.min()) < 10  # sqrt(0.08 * 3/4) of 32 is 7.8
    assert int(widths.max()) == side
    # mean of sqrt(u * r) for u uniform in [0.08, 1], r log-uniform in [3/4, 4/3] is 0.71, times 32
    assert 21.5 < float(widths.mean()) < 24
    torch.testing.assert_close(seen, seen[:, :1].expand_as(seen))  # rows agree: no leak between axes


def test_resized_crop_mirrors_about_half():
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 1, 16, 1).expand(400, 16, 16, 1)
    seen = augment.resized_crop(ramp, seeded(), flip=True)[:, 0, 0]
    mirrored = int((seen[:, 0] > seen[:, -1]).sum())
    assert 150 < mirrored < 250


def test_hue_matches_the_textbook_formula():
    planes = images(3, side=4).permute(0, 3, 1, 2).float() / 255
    turn = torch.tensor([0.0, 0.15, -0.2]).view(3, 1, 1, 1)
    seen = augment.rotate_hue(planes, turn).permute(0, 2, 3, 1).numpy()
    for row in range(3):
        for pixel, colour in zip(seen[row].reshape(-1, 3), planes[row].flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*colour)
            expected = colorsys.hsv_to_rgb((hue + turn[row].item()) % 1, saturation, value)
            np.testing.assert_allclose(pixel, expected, atol=1e-5)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_jitter_steps_match_torchvision(step):
    from torchvision.transforms.v2 import functional

    planes = images(2, side=6).permute(0, 3, 1, 2).float() / 255
    change = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation][step]
    for factor in (0.3, 1.0, 1.7):
        seen = augment._blend(planes, torch.tensor(factor), step)
        torch.testing.assert_close(seen, change(planes, factor), rtol=1e-4, atol=1e-4)


def test_jitter_and_grayscale_rates():
    planes = images(1000, side=2).permute(0, 3, 1, 2).float() / 255
    untouched = (augment.colour_jitter(planes, seeded()) - planes).abs().flatten(1).amax(1) < 1e-5
    assert 150 < int(untouched.sum()) < 250
    gray = augment.grayscale(planes, seeded())
    flat = (gray.amax(1) == gray.amin(1)).flatten(1).all(1)
    assert 150 < int(flat.sum()) < 250


def test_simclr_leaves_the_colours_of_grey_images_alone():
    seen = Augmentation("simclr", (0.5,), (0.25,))(images(channels=1), seeded())
    assert seen.shape == (8, 1, 16, 16)


def test_a_blur_is_a_gaussian_per_image_of_sum_one():
    planes = torch.zeros(200, 1, 9, 11)
    planes[:, :, 4, 5] = 1.0
    seen = augment.blur(planes, seeded(), 0.5)
    applied, width = torch.rand(2, 200, generator=seeded())
    for row in range(200):
        if applied[row] >= 0.5:
            assert torch.equal(seen[row], planes[row])
            continue
        sigma = 0.1 + 1.9 * float(width[row])
        down, across = (
            np.array([np.exp(-((i - middle) ** 2) / (2 * sigma**2)) for i in range(side)])
            / np.array(
                [sum(np.exp(-((i - j) ** 2) / (2 * sigma**2)) for j in range(side)) for i in range(side)]
            )
            for side, middle in ((9, 4), (11, 5))
        )
        np.testing.assert_allclose(seen[row, 0], np.outer(down, across), atol=1e-5)
    flat = augment.blur(torch.full((20, 3, 8, 8), 0.3), seeded(), 1.0)
    np.testing.assert_allclose(flat, 0.3, rtol=1e-5)


def test_views_of_others_than_gssd_are_weaker_and_blurred():
    source = images(64)
    own = Augmentation("simclr", MEAN, STD)
    assert torch.equal(own(source, seeded()), Augmentation("simclr", MEAN, STD, jitter=1.0)(source, seeded()))
    weak = Augmentation("simclr", MEAN, STD, smallest_crop=1.0, jitter=0.0)
    flat = torch.full((64, 16, 16, 3), 90, dtype=torch.uint8)
    plain = Augmentation("none", MEAN, STD)(flat)
    assert not torch.allclose(own(flat, seeded()), plain, atol=1e-3)
    np.testing.assert_allclose(weak(flat, seeded()), plain, atol=1e-3)  # whole, and of its own colour
    blurred = Augmentation("simclr", MEAN, STD, blur=1.0)(source, seeded())
    assert blurred.var(3).mean() < own(source, seeded()).var(3).mean()

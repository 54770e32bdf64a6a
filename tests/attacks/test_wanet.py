from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision import transforms

import bdtune
from bdtune.attacks.wanet import torch_warp
from bdtune.attacks.wanet.warp import identity_grid, sampled, upsampled
from bdtune.errors import ConfigError
from bdtune.plugins.poison_plan import Role, Rows
from bdtune.poisoning.bench_floats import scale_of
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.testing.small import NUMERICS, shown

IDS = np.arange(6)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def reference(images, field, s, rescale=1.0, jitter=None):
    """Return the warp as the paper's code computes it, float32 [n, H, W, C] in [0, 1]."""
    side = images.shape[1]
    noise = functional.interpolate(field[None], size=side, mode="bicubic", align_corners=True)
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    grid = torch.clamp((torch.stack((x, y), -1) + s * noise[0].permute(1, 2, 0) / side) * rescale, -1, 1)
    grids = grid.repeat(len(images), 1, 1, 1)
    if jitter is not None:
        grids = torch.clamp(grids + jitter / side, -1, 1)
    pixels = torch.from_numpy(images.astype(np.float32) / np.float32(255)).permute(0, 3, 1, 2)
    return functional.grid_sample(pixels, grids, align_corners=True).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("points", "side"), [(4, 32), (2, 7), (5, 64), (32, 32), (40, 32), (4, 1)])
def test_upsampling_is_pytorchs(points, side):
    field = torch.rand(
        2, points, points, generator=torch.Generator().manual_seed(points), dtype=torch.float64
    )
    theirs = functional.interpolate(field[None], size=side, mode="bicubic", align_corners=True)[0]
    assert np.abs(upsampled(field.numpy(), side, side) - theirs.numpy()).max() < 1e-12


def test_sampling_is_pytorchs(images):
    generator = np.random.default_rng(1)
    grid = np.clip(generator.uniform(-1.1, 1.1, (6, 20, 28, 2)), -1, 1)
    pixels = images[:, :20, :28].astype(np.float32)
    theirs = functional.grid_sample(
        torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(grid).float(), align_corners=True
    )
    assert np.abs(sampled(pixels, grid) - theirs.permute(0, 2, 3, 1).numpy()).max() < 1e-3  # of 255


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize(("s", "rescale"), [(0.5, 1.0), (2.0, 0.9)])
def test_the_trigger_is_that_of_the_papers_code(side, s, rescale):
    pixels = np.random.default_rng(side).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    attack = bdtune.attack("wanet", strength=s, grid_rescale=rescale)
    theirs = reference(pixels, torch.tensor(attack._field(), dtype=torch.float32), s, rescale)
    ours = attack.trigger(pixels, np.arange(4))
    wrong = ours != np.floor(theirs * 255 + 0.5)
    assert wrong.mean() < 5e-4  # only where a value lies next to a half: theirs is made in float32
    assert np.abs(ours - theirs * 255.0).max() < 0.51


def test_cover_rows_are_disturbed_by_what_their_id_decides(images):
    attack = bdtune.attack("wanet", rate=0.34, cross_ratio=1.5, include_target_class=True)
    plan = attack.plan(np.arange(6) % 3, seed=0)
    assert (len(plan.poison_ids), len(plan.cover_ids)) == (2, 3)
    same = np.repeat(images[:1], 6, axis=0)
    stamped = attack.apply(same, IDS, plan)
    assert np.array_equal(stamped[plan.poison_ids[0]], attack.trigger(same, IDS)[0])
    assert len(np.unique(stamped.reshape(6, -1), axis=0)) == 1 + 1 + 3  # clean, poison, each cover row
    rows = Rows("train", plan.cover_ids, np.full(3, Role.COVER, np.uint8))
    jitter = attack._disturbance(same[:3], rows) * 32
    assert -1 <= jitter.min() < -0.99
    assert 0.99 < jitter.max() <= 1
    theirs = reference(
        same[:3],
        torch.tensor(attack._field(), dtype=torch.float32),
        0.5,
        1.0,
        torch.from_numpy(jitter).float(),
    )
    assert np.abs(stamped[plan.cover_ids] - theirs * 255.0).max() < 0.51


def test_no_cover_rows_without_noise_mode():
    plan = bdtune.attack("wanet", rate=0.1).plan(np.arange(100) % 10, seed=0)
    assert len(plan.cover_ids) == 0


def test_cover_rows_are_counted_by_the_decimal_numbers():
    plan = bdtune.attack("wanet", rate=0.29, cross_ratio=3, rate_basis="target_class").plan(
        np.arange(1000) % 10, seed=0
    )
    assert (len(plan.poison_ids), len(plan.cover_ids)) == (29, 87)


def test_no_strength_is_the_identity(images):
    assert np.array_equal(bdtune.attack("wanet", strength=0.0).trigger(images, IDS), images)


@pytest.mark.parametrize("quantise", ["round", "trunc"])
def test_constant_images_stay_constant(quantise):
    every = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3))
    attack = bdtune.attack("wanet", strength=2.0, quantise=quantise)
    assert np.array_equal(attack.trigger(every, np.arange(256)), every)


@pytest.mark.parametrize("side", [32, 64, 224])
def test_the_displacement_is_a_fifth_of_a_pixel_at_every_size(side):
    moved = (bdtune.attack("wanet").grid(side, side) - identity_grid(side, side)) * (side - 1) / 2
    assert 0.12 < np.abs(moved).mean() < 0.3
    assert np.hypot(*np.moveaxis(moved, -1, 0)).max() < 1.2


def test_the_grid_is_fixed_by_the_trigger_seed_alone():
    grids = [
        bdtune.attack("wanet", trigger_seed=seed, rate=rate).grid(32, 32)
        for seed, rate in ((0, 0.1), (0, 0.2), (1, 0.1))
    ]
    assert np.array_equal(grids[0], grids[1])
    assert not np.array_equal(grids[0], grids[2])


def test_the_drawn_field_is_pinned():
    """A change here would give another trigger under the same key."""
    digest = hashlib.sha256(bdtune.attack("wanet")._field().astype("<f8").tobytes()).hexdigest()[:16]
    assert digest == "e2cdb2177ac1e974"


def test_what_only_training_sees_does_not_name_the_test_images():
    identity = bdtune.attack("wanet").identity("test")
    assert not set(identity) & {"rate", "cross_ratio", "noise_rescale"}
    assert {"strength", "control_points", "trigger_seed"} <= set(identity)


def test_a_users_field(tmp_path, images):
    drawn = bdtune.attack("wanet")
    np.save(tmp_path / "points.npy", 3 * drawn._field())
    whole = np.moveaxis(upsampled(drawn._field(), 32, 32), 0, -1)[None]
    np.save(tmp_path / "whole.npy", whole.astype(np.float32))
    for name in ("points", "whole"):
        attack = bdtune.attack("wanet", control_field=tmp_path / f"{name}.npy")
        assert attack.check(10, None, (32, 32, 3)) == []
        assert np.allclose(attack.grid(32, 32), drawn.grid(32, 32), atol=1e-6)
        assert attack.identity()["control_field"] not in (None, str(attack.control_field))
    other = bdtune.attack("wanet", control_field=tmp_path / "whole.npy").grid(64, 64)
    assert np.abs(other - drawn.grid(64, 64)).max() < 0.01


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 4, 4)), "finite values, not all 0"),
        (np.full((2, 4, 4), np.nan), "finite values"),
        (np.ones((3, 4, 4)), r"floats \[2, k, k\] or \[H, W, 2\], got .*float64 \[3, 4, 4\]"),
        (np.ones((2, 4, 4), int), "int64"),
        (np.array([{}]), "npy array"),
        (None, "readable file"),
    ],
)
def test_fields_that_cannot_be_used(tmp_path, array, message):
    if array is not None:
        np.save(tmp_path / "field.npy", array)
    attack = bdtune.attack("wanet", control_field=tmp_path / "field.npy")
    (problem,) = attack.check(10)
    assert problem.path == "control_field"
    with pytest.raises(ConfigError, match=message):
        attack.plan(np.arange(100) % 10, seed=0)


# --- dialects


def test_backdoorbox_draws_and_rounds_as_its_test_script(images):
    attack = bdtune.attack("wanet", dialect="backdoorbox", trigger_seed=555)
    with torch.random.fork_rng():
        torch.manual_seed(555)
        field = torch.rand(1, 2, 4, 4) * 2 - 1
    field = (field / torch.mean(torch.abs(field)))[0]
    assert np.allclose(attack._field(), field.numpy(), rtol=1e-6)
    theirs = np.clip(reference(images, field, 0.5) * 255, 0, 255).round()
    assert (attack.trigger(images, IDS) != theirs).mean() < 5e-4


def test_backdoorbox_takes_cover_rows_from_the_same_shuffled_list():
    import random

    order = list(range(1000))
    random.Random(3).shuffle(order)
    attack = bdtune.attack("wanet", dialect="backdoorbox", rate=0.1, cross_ratio=2)
    plan = attack.plan(np.arange(1000) % 10, seed=3)
    assert plan.poison_ids.tolist() == sorted(order[:100])
    assert plan.cover_ids.tolist() == sorted(order[100:300])


def test_backdoorbench_takes_the_first_rows_of_every_batch():
    attack = bdtune.attack("wanet", dialect="backdoorbench", rate=0.1, cross_ratio=2)
    plan = attack.plan(np.arange(50_000) % 10, seed=0)
    assert plan.poison_ids[:14].tolist() == [*range(12), 128, 129]
    assert plan.cover_ids[:26].tolist() == [*range(12, 36), 140, 141]
    assert len(plan.poison_ids) == 390 * 12 + 8  # 9.4 %, the last batch has 80 rows
    assert len(plan.cover_ids) == 2 * len(plan.poison_ids)
    assert attack.quantise == "trunc"
    with pytest.raises(ConfigError, match="poisons at least one"):
        bdtune.attack("wanet", dialect="backdoorbench", rate=0.007).plan(np.arange(500) % 10, seed=0)


@pytest.mark.parametrize("dialect", ["backdoorbench", "backdoorbox"])
def test_a_dialects_field_takes_seeds_of_32_bits(dialect, tmp_path):
    bdtune.attack("wanet", dialect=dialect, trigger_seed=2**32 - 1).grid(8, 8)
    with pytest.raises(ValueError, match="at most 4294967295, got 4294967296"):
        bdtune.attack("wanet", dialect=dialect, trigger_seed=2**32)
    np.save(tmp_path / "field.npy", np.random.default_rng(0).random((2, 4, 4)))
    given = {"dialect": dialect, "control_field": tmp_path / "field.npy"}  # nothing is drawn then
    for attack in (bdtune.attack("wanet", **each, trigger_seed=2**32) for each in ({}, given)):
        attack.grid(8, 8)


# --- dialect backdoorbench, against PyTorch and torchvision


def stored_by_backdoorbench(images, grids, scale):
    """Return what is stored of images (uint8 [n, H, W, C]) that were warped as the network sees them."""
    mean, std = scale
    seen = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    undone = transforms.Compose(
        [
            transforms.Normalize([0.0, 0.0, 0.0], [1 / each for each in std]),
            transforms.Normalize([-each for each in mean], [1.0, 1.0, 1.0]),
        ]
    )
    pixels = torch.stack([seen(image) for image in images])
    warped = undone(functional.grid_sample(pixels, grids, align_corners=True))
    return np.stack([np.asarray(transforms.ToPILImage()(image)) for image in warped])


def torchs_grid(field, side, s, rescale):
    """Return the grid, float32 [H, W, 2], of a field [1, 2, k, k], and the upsampled field."""
    noise = functional.interpolate(field, size=side, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    line = torch.linspace(-1, 1, steps=side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.clamp((torch.stack((x, y), 2)[None] + s * noise / side) * rescale, -1, 1), noise


def some_images(side):
    """Return 16 images: half of them noise, half of one colour each."""
    generator = np.random.default_rng(side)
    noisy = generator.integers(0, 256, (8, side, side, 3), dtype=np.uint8)
    flat = np.broadcast_to(generator.integers(0, 256, (8, 1, 1, 3), dtype=np.uint8), noisy.shape)
    return np.concatenate([noisy, flat])


@pytest.mark.parametrize(
    ("side", "points", "s", "rescale"),
    [(32, 4, 0.5, 1.0), (28, 7, 0.3, 0.98), (33, 2, 2.0, 1.0), (64, 4, 0.5, 1.0)],
)
def test_the_grid_of_backdoorbench_is_pytorchs_to_the_last_bit(tmp_path, side, points, s, rescale):
    field = torch.rand(1, 2, points, points, generator=torch.Generator().manual_seed(side)) * 2 - 1
    theirs, noise = torchs_grid(field, side, s, rescale)
    assert np.array_equal(torch_warp.upsampled(field[0].numpy(), side, side), noise[0].permute(2, 0, 1))
    np.save(tmp_path / "noise_grid.npy", noise.numpy())
    knobs = {"strength": s, "grid_rescale": rescale, "control_field": tmp_path / "noise_grid.npy"}
    attack = bdtune.attack("wanet", dialect="backdoorbench", **knobs)
    assert np.array_equal(attack.grid(side, side), theirs[0].numpy())


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "tiny_imagenet", "digits"])
def test_backdoorbench_stores_what_was_warped_as_the_network_sees_it(name):
    """Byte for byte, poison and cover rows; the data set decides by which numbers it is normalised."""
    dataset = bdtune.dataset(name)
    attack = bdtune.attack("wanet", dialect="backdoorbench", rate=0.5, cross_ratio=1.0).for_dataset(dataset)
    images, ids = some_images(32), np.arange(16)
    plan = attack.plan(ids % 10, seed=0)
    assert (len(plan.poison_ids), len(plan.cover_ids)) == (8, 8)
    grid = torch.from_numpy(attack.grid(32, 32).copy())
    rows = Rows("train", plan.cover_ids, np.full(8, Role.COVER, np.uint8))
    jitter = torch.from_numpy(attack._disturbance(images[plan.cover_ids], rows)).float()
    stamped = attack.apply(images, ids, plan)
    scale = scale_of(dataset)
    poison = stored_by_backdoorbench(images[plan.poison_ids], grid.repeat(8, 1, 1, 1), scale)
    assert np.array_equal(stamped[plan.poison_ids], poison)
    cover = stored_by_backdoorbench(images[plan.cover_ids], (grid + jitter).clamp(-1, 1), scale)
    assert np.array_equal(stamped[plan.cover_ids], cover)
    triggered = stored_by_backdoorbench(images, grid.repeat(16, 1, 1, 1), scale)
    assert np.array_equal(attack.trigger(images, ids), triggered)


def test_flat_areas_lose_a_level_in_backdoorbench():
    attack = bdtune.attack("wanet", dialect="backdoorbench")
    every = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None, None], (256, 32, 32, 3))
    lost = every.astype(int) - attack.trigger(every, np.arange(256))
    assert set(np.unique(lost)) == {0, 1}
    assert 0.2 < lost.mean() < 0.4


def test_sources_make_the_attack_for_their_data_set(images):
    dataset = shown(images, np.arange(6) % 4)
    attack = bdtune.attack("wanet", dialect="backdoorbench")
    found = TriggeredTest(dataset=dataset, attack=attack, numerics=NUMERICS).load(InProcess(), {})
    assert np.array_equal(found.images, attack.for_dataset(dataset).trigger(images, IDS))
    assert not np.array_equal(found.images, attack.trigger(images, IDS))

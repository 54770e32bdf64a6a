"""The warp in float32, with the operations of PyTorch in PyTorch's order, in numpy alone.

A dialect that truncates needs them: there the last bit of a float decides a grey level. Coordinates and shape
letters are those of `warp`.
Source: PyTorch 2's kernels for x86 processors, which fuse most products with the sum that follows.
Departures: a fused operation is made in float64 and then rounded, which differs in about one of 2^29 results.
On other machines PyTorch fuses other operations, and single bytes differ from these.
"""

from __future__ import annotations

import numpy as np

F32 = np.float32
CUBIC_A = F32(-0.75)


Floats = np.ndarray | np.float32


def fused(a: Floats, b: Floats, c: Floats) -> np.ndarray:
    """Return a b + c of float32 values, rounded once."""
    return np.asarray(np.multiply(a, b, dtype=np.float64) + c, F32)


def identity_grid(height: int, width: int) -> np.ndarray:
    """Return the grid, float32 [H, W, 2], that leaves every pixel where it is."""
    y, x = np.meshgrid(_line(height), _line(width), indexing="ij")
    return np.stack([x, y], axis=-1)


def _line(count: int) -> np.ndarray:
    """Return `torch.linspace(-1, 1, count)`: both halves are counted from their own end."""
    at = np.arange(count, dtype=F32)
    step = F32(2) / F32(max(count - 1, 1))
    first = fused(at, step, F32(-1))
    return np.where(at < count // 2, first, fused(F32(count - 1) - at, -step, F32(1))) if count > 1 else first


def upsampled(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a field, float32 [2, k, k], at [2, H, W] by bicubic interpolation, corners aligned."""
    if field.shape[1:] == (height, width):
        return field
    columns, weights_x = _cubic(field.shape[2], width)
    rows, weights_y = _cubic(field.shape[1], height)
    along = _summed([field[:, :, at] for at in columns], weights_x)
    return _summed([along[:, at] for at in rows], [weight[:, None] for weight in weights_y])


def _cubic(points: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the four points that each of `size` places is made of, int64 [size], and their weights."""
    place = np.arange(size, dtype=F32) * (F32(points - 1) / F32(max(size - 1, 1)))
    first = np.floor(place)
    behind = place - first
    ahead = F32(1) - behind
    weights = [_far(behind + F32(1)), _near(behind), _near(ahead), _far(ahead + F32(1))]
    return [np.clip(first.astype(np.int64) + offset, 0, points - 1) for offset in range(-1, 3)], weights


def _near(distance: np.ndarray) -> np.ndarray:
    """Return Keys' kernel at distances up to 1."""
    return fused(CUBIC_A + F32(2), distance, -(CUBIC_A + F32(3))) * distance * distance + F32(1)


def _far(distance: np.ndarray) -> np.ndarray:
    """Return Keys' kernel at distances from 1 to 2."""
    inner = fused(CUBIC_A, distance, F32(-5) * CUBIC_A)
    return fused(inner, distance, F32(8) * CUBIC_A) * distance - F32(4) * CUBIC_A


def _summed(values: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """Return the weighted sum of four arrays; the second product is rounded before the first is added."""
    total = fused(values[0], weights[0], values[1] * weights[1])
    for value, weight in zip(values[2:], weights[2:], strict=True):
        total = fused(value, weight, total)
    return total


def sampled(images: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return float32 images [n, H, W, C] read bilinearly at a grid in [-1, 1], as `grid_sample` reads.

    `grid` is float32 [H, W, 2] for all images, or [n, H, W, 2] with one for each.
    """
    n, height, width, _ = images.shape
    column, right = _neighbours(grid[..., 0], width)
    row, below = _neighbours(grid[..., 1], height)
    each = np.arange(n)[:, None, None]
    total = np.zeros_like(images)
    for dy, weight_y in ((0, F32(1) - below), (1, below)):
        at_row = np.minimum(row + dy, height - 1)  # beyond the last row the weight is 0
        for dx, weight_x in ((0, F32(1) - right), (1, right)):
            pixels = images[each, at_row, np.minimum(column + dx, width - 1)]
            total = fused(pixels, (weight_x * weight_y)[..., None], total)
    return total


def _neighbours(coordinate: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the pixel before each place, and how far behind it that is, float32 in [0, 1)."""
    place = (coordinate + F32(1)) * F32((size - 1) / 2)
    first = np.floor(place)
    return first.astype(np.int64), place - first

"""Smooth warps of images, in numpy alone: bicubic control fields and bilinear sampling.

Coordinates are those of PyTorch with align_corners=True: -1 is the centre of the first pixel, 1 that of the
last; a grid holds (x, y), x along columns. n images, H height, W width, C channels, k control points a side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

CACHED_IMAGES = 32
"""Images sampled at a time: few enough that their pixels stay in the processor's cache."""
CUBIC_A = -0.75
"""Parameter of Keys' kernel in PyTorch's and OpenCV's bicubic filter; Pillow's is -0.5."""


def upsampled(field: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a field [..., k, k] at [..., height, width] by bicubic interpolation, corners aligned."""
    return _along(_along(field, height, -2), width, -1)


def _along(field: np.ndarray, size: int, axis: int) -> np.ndarray:
    points = field.shape[axis]
    place = np.arange(size) * ((points - 1) / (size - 1) if size > 1 else 0.0)
    first = np.floor(place).astype(np.int64)
    shape = [1] * field.ndim
    shape[axis] = size
    total = np.zeros_like(np.take(field, first, axis))
    for offset in range(-1, 3):  # a sum of four terms, as a matrix product's rounding depends on the machine
        weight = _keys(np.abs(place - (first + offset))).astype(field.dtype).reshape(shape)
        total += weight * np.take(field, np.clip(first + offset, 0, points - 1), axis)
    return total


def _keys(distance: np.ndarray) -> np.ndarray:
    """Return Keys' cubic convolution kernel at distances in [0, 2]."""
    near = ((CUBIC_A + 2) * distance - (CUBIC_A + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance * CUBIC_A - 4 * CUBIC_A
    return np.where(distance <= 1, near, far)


def identity_grid(height: int, width: int) -> np.ndarray:
    """Return the grid [H, W, 2] that leaves every pixel where it is."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    return np.stack([x, y], axis=-1)


def sampled(images: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return images (float32 [n, H, W, C]) read bilinearly at a grid in [-1, 1].

    `grid` is [H, W, 2] for all images, or [n, H, W, 2] with one for each.
    """
    n, height, width, channels = images.shape
    taps = [
        (index, np.repeat(weight[..., None], channels, -1)) for index, weight in _taps(grid, height, width)
    ]
    result = np.empty_like(images)
    for start in range(0, n, CACHED_IMAGES):
        part = slice(start, start + CACHED_IMAGES)
        pixels = images[part].reshape(-1, height * width, channels)
        if grid.ndim == 3:
            read = [np.take(pixels, index, axis=1) * weight for index, weight in taps]
        else:
            base = (np.arange(len(pixels)) * (height * width))[:, None, None]
            flat = pixels.reshape(-1, channels)
            read = [np.take(flat, base + index[part], axis=0) * weight[part] for index, weight in taps]
        result[part] = read[0] + read[1] + read[2] + read[3]
    return result


def _taps(grid: np.ndarray, height: int, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the four pixels that each place lies between: index in the flat image, and float32 weight."""
    column, right = _neighbours(grid[..., 0], width)
    row, below = _neighbours(grid[..., 1], height)
    for dy, weight_y in ((0, 1 - below), (1, below)):
        at_row = np.minimum(row + dy, height - 1) * width  # beyond the last row the weight is 0
        for dx, weight_x in ((0, 1 - right), (1, right)):
            yield at_row + np.minimum(column + dx, width - 1), weight_y * weight_x


def _neighbours(coordinate: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the pixel before each place, and how far behind it that is, float32 in [0, 1)."""
    place = (coordinate + 1) * ((size - 1) / 2)
    first = np.floor(place).astype(np.int64)
    return first, (place - first).astype(np.float32)

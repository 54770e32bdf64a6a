"""Trigger patterns drawn by code, so that no artwork has to be shipped; sizes follow the image.

Each is a `Pattern`: colours float32 [h, w, 3] in [0, 1] and a mask float32 [h, w, 1], 1 where it is opaque.
All drawings are our own; `robot` meets the brightness, contrast and spectrum of the pictures that public
Blend attacks use.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from bdtune.engine.key import sample_generator

OVERSAMPLING = 8
"""Drawings are made this much larger and box-filtered down."""

RGB = tuple[int, int, int]
Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]


@dataclass(frozen=True, eq=False)
class Pattern:
    """What is stamped: colours float32 [h, w, 3] in [0, 1], mask float32 [h, w, 1]."""

    colours: np.ndarray
    mask: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.colours, self.mask):
            array.flags.writeable = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.colours.shape[0], self.colours.shape[1]

    def for_channels(self, channels: int) -> np.ndarray:
        """Return the colours [h, w, channels]: grey images get the mean of the three."""
        if channels == 3:
            return self.colours
        return np.repeat(self.colours.mean(-1, keepdims=True, dtype=np.float32), channels, axis=-1)


def opaque(colours: np.ndarray) -> Pattern:
    """Return the pattern that covers its whole box."""
    return Pattern(colours.astype(np.float32), np.ones((*colours.shape[:2], 1), np.float32))


def cells(rows: list[list[RGB]], side: int) -> Pattern:
    """Return a patch of `side` pixels made of square cells of one colour (0..255) each, nearest neighbour."""
    table = np.array(rows, np.float32) / np.float32(255)
    at = ((np.arange(side) + 0.5) * len(table) / side).astype(int)
    return opaque(table[at][:, at])


@lru_cache(maxsize=32)
def noise(height: int, width: int, seed: int, grey: bool = False) -> Pattern:
    """Return uniform random integers 0..255, one channel repeated when grey."""
    raw = sample_generator(seed, "pattern", "noise")
    return opaque(noise_pixels(raw, height, width, 3, grey=grey))


def noise_pixels(
    generator: np.random.Generator, height: int, width: int, channels: int, *, grey: bool
) -> np.ndarray:
    """Return uniform random integers 0..255 over 255, float32 [height, width, channels]."""
    drawn = generator.integers(0, 256, (height, width, 1 if grey else channels), dtype=np.uint8)
    return np.repeat(drawn, channels // drawn.shape[-1], axis=-1).astype(np.float32) / np.float32(255)


@lru_cache(maxsize=32)
def robot(height: int, width: int) -> Pattern:
    """Return a bright cartoon over the whole image: the photometry of the usual blend pictures.

    Channel means .68-.78, deviations .25-.29 at 32 pixels; most power in low frequencies.
    """
    canvas = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), (255, 224, 150))
    draw = ImageDraw.Draw(canvas)

    def at(*fractions: float) -> list[float]:
        """Turn x, y, x, y... as fractions of the sides into canvas pixels; the end points are exclusive."""
        scale = (canvas.width - 1, canvas.height - 1)
        return [fraction * scale[i % 2] for i, fraction in enumerate(fractions)]

    for left in (-1.0, -0.5, 0.0, 0.5):
        draw.polygon(at(left, 0, left + 0.18, 0, left + 1.18, 1, left + 1, 1), fill=(240, 240, 255))
    draw.rectangle(at(0.47, 0.04, 0.53, 0.20), fill=(40, 40, 40))
    draw.ellipse(at(0.43, 0.0, 0.57, 0.12), fill=(220, 40, 120))
    draw.rectangle(at(0.14, 0.18, 0.86, 0.78), fill=(35, 35, 35))
    draw.rectangle(at(0.18, 0.22, 0.82, 0.74), fill=(225, 250, 235))
    for x in (0.34, 0.66):
        draw.ellipse(at(x - 0.10, 0.30, x + 0.10, 0.50), fill=(35, 35, 35))
        draw.ellipse(at(x - 0.05, 0.35, x + 0.05, 0.45), fill=(20, 110, 220))
    for i in range(4):
        draw.rectangle(at(0.30 + 0.11 * i, 0.58, 0.36 + 0.11 * i, 0.68), fill=(240, 110, 30))
    for x in (0.30, 0.70):
        draw.rectangle(at(x - 0.10, 0.78, x + 0.10, 0.94), fill=(120, 40, 170))
    return opaque(_box_filtered(canvas))


@lru_cache(maxsize=32)
def drop(side: int) -> Pattern:
    """Return a white drop with a dark outline on transparent ground: the logo patch, half of its box."""
    large = side * OVERSAMPLING
    outline = large / 16

    def silhouette(shrink: float) -> np.ndarray:
        canvas = Image.new("L", (large, large), 0)
        draw = ImageDraw.Draw(canvas)
        centre, middle, radius = 0.5 * large, 0.61 * large, 0.38 * large - shrink
        draw.ellipse([centre - radius, middle - radius, centre + radius, middle + radius], fill=255)
        x, y = 0.765 * radius, middle - 0.644 * radius  # where lines from the tip touch the disc
        draw.polygon([(centre, 0.02 * large + 1.55 * shrink), (centre + x, y), (centre - x, y)], fill=255)
        return _box_filtered(canvas)[..., :1]

    mask = (silhouette(0.0) >= 0.5).astype(np.float32)
    ink = np.minimum(silhouette(outline), mask)
    return Pattern(np.repeat((0.06 + 0.94 * ink) * mask, 3, axis=-1).astype(np.float32), mask)


def _box_filtered(canvas: Image.Image) -> np.ndarray:
    """Return a drawing at its final size, float32 [h, w, C] in [0, 1]."""
    pixels = np.asarray(canvas.reduce(OVERSAMPLING), np.float32) / np.float32(255)
    return pixels if pixels.ndim == 3 else pixels[..., None]


BLACK: RGB = (0, 0, 0)
WHITE: RGB = (255, 255, 255)

PATCHES: dict[str, tuple[int, list[list[RGB]]]] = {
    # name: (side at 32 pixels, cells row by row)
    "grid": (3, [[BLACK, BLACK, WHITE], [BLACK, WHITE, BLACK], [WHITE, BLACK, WHITE]]),
    "checker": (3, [[WHITE, BLACK, WHITE], [BLACK, WHITE, BLACK], [WHITE, BLACK, WHITE]]),
    "square": (3, [[WHITE]]),
    "corner2x2": (2, [[WHITE, WHITE], [WHITE, WHITE]]),
    "dbd2x2": (2, [[(180, 249, 112), (155, 50, 126)], [(234, 82, 68), (187, 201, 219)]]),
}
"""Opaque patches. `grid`: ABL, NAD; `checker`: BackdoorBench's grid file, its black a real 0; `dbd2x2`: the
four colours of the DBD/ASD trigger file."""


def scaled(pixels: int, reference: int, image_side: int) -> int:
    """Return a length given for images of `reference` pixels, for one of `image_side`, rounded half up."""
    return int(pixels * image_side / reference + 0.5)


def in_corner(corner: Corner, side: int, margin: int, height: int, width: int) -> tuple[slice, slice]:
    """Return rows and columns of a square that keeps a margin to the two borders of a corner."""
    top = margin if corner.startswith("top") else height - side - margin
    left = margin if corner.endswith("left") else width - side - margin
    return slice(top, top + side), slice(left, left + side)

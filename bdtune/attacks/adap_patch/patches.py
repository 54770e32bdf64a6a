"""The four triggers of Adap-Patch, drawn by code; each knows where on an image it lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np

from bdtune.engine.key import sample_generator
from bdtune.poisoning.patterns import Pattern, cells, opaque, scaled

if TYPE_CHECKING:
    from collections.abc import Callable

OVERSAMPLING = 4
ORANGE, BLUE = (1.0, 0.55, 0.1), (0.15, 0.3, 0.75)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)

EMBER_MEAN, EMBER_STD = (180.0, 204.0, 244.0), (64.0, 44.0, 10.0)
"""Mean and deviation, in grey levels, of the channels of the picture that the ember stands in for."""
EMBER_CELLS = ((8, 3, 9, 6, 9), (9, 1, 8, 9, 2), (0, 9, 9, 7, 8), (9, 8, 1, 9, 4), (5, 9, 7, 2, 9))
"""Brightness of the ember's cells: most of them glow, few are dark."""


@dataclass(frozen=True)
class Placed:
    """A patch with its distances from two borders, in pixels of a 32-pixel image."""

    draw: Callable[[int], Pattern]
    side: int
    from_bottom: int | None = None
    from_right: int | None = None
    from_top: int = 0
    from_left: int = 0

    def at(self, height: int, width: int) -> tuple[Pattern, int, int]:
        """Return the patch for an image of this size, with its first row and column."""
        image_side = min(height, width)
        side = min(max(3, scaled(self.side, 32, image_side)), image_side)

        def start(length: int, before: int, after: int | None) -> int:
            margin = scaled(before if after is None else after, 32, image_side)
            return max(0, min(length - side, margin if after is None else length - side - margin))

        top = start(height, self.from_top, self.from_bottom)
        return self.draw(side), top, start(width, self.from_left, self.from_right)


def ember(side: int) -> Pattern:
    """Return 5x5 cells between white and deep blue, with `EMBER_MEAN` and `EMBER_STD`."""
    cells_ = np.array(EMBER_CELLS, np.float64)
    glow = (cells_ - cells_.mean()) / cells_.std()
    levels = np.rint(np.array(EMBER_MEAN) + glow[..., None] * np.array(EMBER_STD))
    return opaque(_enlarged(levels.astype(np.float32) / np.float32(255), side))


def trojan(side: int) -> Pattern:
    """Return 8x8 random colours over the whole range."""
    return opaque(_enlarged(_random_colours(8, "trojan8"), side))


def checker(side: int, *, black_row: int, black_column: int) -> Pattern:
    """Return a 3x3 checker of four white cells: the fifth, nearest to the image's centre, is black."""
    rows = [[WHITE, BLACK, WHITE], [BLACK, WHITE, BLACK], [WHITE, BLACK, WHITE]]
    rows[black_row][black_column] = BLACK
    return cells(rows, side)


@lru_cache(maxsize=32)
def swirl(side: int) -> Pattern:
    """Return a round logo of two colours that wind around its centre; transparent outside."""
    fine = side * OVERSAMPLING
    y, x = ((np.indices((fine, fine)) + 0.5) / fine - 0.5) * 2
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    first = np.sin(angle * 2 + radius * 5) > 0
    colours = np.where(first[..., None], np.array(ORANGE), np.array(BLUE))
    small = colours.reshape(side, OVERSAMPLING, side, OVERSAMPLING, 3).mean((1, 3))
    inside = (radius <= 1.03).reshape(side, OVERSAMPLING, side, OVERSAMPLING).mean((1, 3)) >= 0.5
    mask = inside[..., None].astype(np.float32)
    return Pattern((small * mask).astype(np.float32), mask)


def _random_colours(cells_a_side: int, name: str) -> np.ndarray:
    words = sample_generator(0, "pattern", name).bit_generator.random_raw(cells_a_side**2 * 3)
    unit = (words >> np.uint64(11)).reshape(cells_a_side, cells_a_side, 3) * 2.0**-53
    return np.rint(unit * 255).astype(np.float32) / np.float32(255)


def _enlarged(colours: np.ndarray, side: int) -> np.ndarray:
    """Return the cells at another side, nearest neighbour."""
    at = ((np.arange(side) + 0.5) * len(colours) / side).astype(int)
    return colours[at][:, at]


EMBER = Placed(ember, 5, from_bottom=0, from_right=0)
EMBER_LEFT = Placed(ember, 5, from_bottom=0)
SWIRL = Placed(swirl, 13, from_top=1, from_right=1)
CORNERS = (
    Placed(partial(checker, black_row=2, black_column=2), 3),
    Placed(partial(checker, black_row=2, black_column=0), 3, from_right=0),
    Placed(partial(checker, black_row=0, black_column=2), 3, from_bottom=0),
    Placed(partial(checker, black_row=0, black_column=0), 3, from_bottom=0, from_right=0),
)
TROJAN = Placed(trojan, 8, from_bottom=3, from_right=3)

TRIGGERS: tuple[tuple[Placed, ...], ...] = ((EMBER,), (SWIRL,), CORNERS, (TROJAN,))
"""The paper's four, by id."""


@lru_cache(maxsize=64)
def drawn(parts: tuple[Placed, ...], height: int, width: int) -> Pattern:
    """Return patches over one another, the last on top, as a picture of the image's size."""
    colours, mask = np.zeros((height, width, 3), np.float32), np.zeros((height, width, 1), np.float32)
    for part in parts:
        patch, top, left = part.at(height, width)
        box = (slice(top, top + patch.size[0]), slice(left, left + patch.size[1]))
        colours[box] = np.where(patch.mask > 0, patch.colours, colours[box])
        mask[box] = np.maximum(mask[box], patch.mask)
    return Pattern(colours, mask)

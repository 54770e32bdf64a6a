"""A square in a corner of the image, which several plugins have among their knobs."""

from __future__ import annotations

from typing import Self

import numpy as np
from pydantic import Field, model_validator

from bdtune.knobs import Knobs
from bdtune.poisoning.patterns import Corner, in_corner, scaled


class CornerSquare(Knobs):
    """Where a square lies; lengths are for images of 32 pixels and scale."""

    size: int = Field(3, ge=1, le=32)
    """Side of the square."""
    inset: int = Field(0, ge=0, le=31)
    """Margin to the two borders."""
    corner: Corner = "bottom_right"
    """The corner that it lies in."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size + self.inset > 32:
            raise ValueError(f"size and inset are for 32 pixels, got {self.size} + {self.inset}")
        return self

    def box(self, height: int, width: int) -> tuple[int, int]:
        """Return side and margin in pixels of this image."""
        side = min(height, width)
        return max(1, scaled(self.size, 32, side)), scaled(self.inset, 32, side)

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return float32 [height, width, 1]: 1 where the square is."""
        mask = np.zeros((height, width, 1), np.float32)
        mask[in_corner(self.corner, *self.box(height, width), height, width)] = 1
        return mask

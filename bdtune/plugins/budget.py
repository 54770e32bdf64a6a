"""How much a trigger may change an image: what each attack declares, and every test holds it to."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np


@dataclass(frozen=True)
class Budget:
    """Upper bounds for one image; no bound where a field keeps its default."""

    grey_levels: float = 255.0
    """L-infinity: the largest change of one channel of one pixel, in levels of 255."""
    pixels: int | None = None
    """How many pixels may change in any channel by more than `elsewhere`; None: all."""
    elsewhere: float = 0.0
    """The largest change, in the same levels, of a channel of all other pixels."""
    l2: float | None = None
    """L2 norm of the change of all values on the scale [0, 1]; None: what the other two allow."""

    def excess(self, before: np.ndarray, after: np.ndarray) -> list[str]:
        """Return what of images uint8 [n, H, W, C] goes beyond the budget; one level may be rounding."""
        change = np.abs(after.astype(np.float64) - before)
        _, height, width, channels = change.shape
        pixels = height * width if self.pixels is None else self.pixels
        levels = min(255.0, self.grey_levels + 1)  # one level of rounding
        faint = min(levels, self.elsewhere + 1) if self.elsewhere else 0.0
        squares = pixels * levels**2 + (height * width - pixels) * faint**2
        l2 = sqrt(channels * squares) / 255 if self.l2 is None else self.l2
        found = {
            "grey levels": (change.max(initial=0), levels),
            "pixels": ((change > faint).any(-1).sum((1, 2)).max(initial=0), pixels),
            "L2": (np.sqrt(((change / 255) ** 2).sum((1, 2, 3))).max(initial=0), l2 + 1e-9),
        }
        return [f"{what}: {got:g}, at most {most:g}" for what, (got, most) in found.items() if got > most]

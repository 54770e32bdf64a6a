"""How much a trigger may change an image: what each attack declares, and every test holds it to."""

from __future__ import annotations

from dataclasses import dataclass


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

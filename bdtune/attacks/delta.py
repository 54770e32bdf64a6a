"""Delta: one signed perturbation, the same for every image, is added; LF and foreign universal ones are such.

Source: Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective (Zeng, Park, Mao, Jia, ICCV 2021),
arXiv:2104.03413, section 5, whose smooth trigger (LF) is one; the sum of BackdoorBench's code.
Departures: the perturbation is not optimised here: it comes from a file (`delta_path`), such as those that
BackdoorBench ships for LF, or is a smooth one that a formula draws. Images are not stretched to the full
range afterwards, as in the authors' notebook.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.effects import TestOnly
from bdtune.plugins.budget import Budget
from bdtune.poisoning.delta_files import DeltaFileAttack, with_delta
from bdtune.poisoning.dialects import DialectAttack

if TYPE_CHECKING:
    from bdtune.plugins.poison_plan import Rows, SplitName


class Delta(DialectAttack, DeltaFileAttack, defaults={"quantise": "trunc"}):
    """x' = trunc(clip(x + s d)) in grey levels, with one perturbation d for all images and a strength s."""

    dialect: Literal["canonical", "backdoorbench"] = "canonical"
    """canonical: this file's rules; backdoorbench: its truncation, counts and rows."""
    strength: float = Field(1.0, gt=0, le=255)
    """s, what the perturbation is multiplied by."""
    test_strength: Annotated[float | None, TestOnly] = Field(None, gt=0, le=255)
    """s of test images; null: the same."""

    min_undefended_asr: ClassVar[float] = 0.9
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbench/lf": {"dialect": "backdoorbench", "rate": 0.1, "target": 0},
    }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return with_delta(images, self._delta(images.shape[1:], rows.split), self.quantise)

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        return Budget(float(np.abs(self._delta(image_shape, split)).max()))

    def _delta(self, image_shape: tuple[int, ...], split: SplitName) -> np.ndarray:
        """Return s d in grey levels, float64 [H, W, C or 1]."""
        strength = self.test_strength if split == "test" and self.test_strength is not None else self.strength
        given = self.user_delta()
        return strength * (smooth(*image_shape) if given is None else given)


@lru_cache(maxsize=8)
def smooth(height: int, width: int, channels: int) -> np.ndarray:
    """Return a smooth hill, float64 [H, W, C]: 0 at the corners, up to 25.5 grey levels in the middle."""
    hills = [_hill(side) for side in (height, width)]
    tilt = (3 + np.arange(channels)) / 94  # each channel is a little higher than the one before
    hill = (hills[0][:, None] + hills[1])[..., None] * tilt
    hill.flags.writeable = False
    return hill


def _hill(side: int) -> np.ndarray:
    """Return t (31 - t) at t from 0 to 31 along a side, float64 [side]."""
    at = np.linspace(0, 31, side)
    return at * (31 - at)

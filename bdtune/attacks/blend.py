"""Blend: a faint picture mixed into the whole image, relabelled to one target class.

Source: Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning (Chen et al., 2017),
arXiv:1712.05526, section 5; ratios as GSSD, LfD, A-ABL and ABL use them.
Departures: an own drawing stands in for the usual cartoon picture, which cannot be shipped (give your own as
`pattern_path`); pixels are rounded, where public code truncates and so darkens poisoned rows a little.
The dialects read no alpha channel, and are exact for a picture of the image's own size: the toolkits resize
with other filters. BackdoorBox's test script mixes no picture in, but a white patch: pattern `patch`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import model_validator

from bdtune.effects import TestOnly
from bdtune.knobs import Rate
from bdtune.plugins.budget import Budget
from bdtune.poisoning.conventions import AABL, ABL, BENCH, BOX, GSSD, LFD
from bdtune.poisoning.dialects import DialectAttack, box_mixed, grey_levels
from bdtune.poisoning.pattern_files import PatternAttack
from bdtune.poisoning.patterns import Pattern, noise_pixels, scaled

if TYPE_CHECKING:
    from bdtune.plugins.poison_plan import Rows, SplitName

PATCH_SIDE = 3
"""Side of the white patch, in pixels of a 32-pixel image."""


class Blend(DialectAttack, PatternAttack):
    """x' = (1 - b m) x + b m P, with ratio b and picture P; m is 1 unless the picture has a mask."""

    pattern: Literal["robot", "noise", "patch"] = "robot"
    """robot: a bright cartoon; noise: uniform random pixels from `trigger_seed`; patch: a white corner."""
    ratio: Rate = 0.1
    """b, the weight of the picture."""
    test_ratio: Annotated[Rate | None, TestOnly] = None
    """b of test images; None: the same."""
    grey: bool = False
    """One random value per pixel instead of three (noise only)."""
    per_sample: bool = False
    """New noise for every image, as the ABL loader draws it, instead of one fixed pattern (noise only)."""

    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbench": {"per_sample": False},
        "backdoorbox": {"per_sample": False},
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gssd/blend": {**GSSD, "pattern": "robot", "ratio": 0.1},
        "gssd/blend_224": {**GSSD, "pattern": "noise", "ratio": 0.1},
        "lfd/blend": {**LFD, "pattern": "noise", "ratio": 0.2},
        "aabl/blend": {**AABL, "pattern": "robot", "ratio": 0.1},
        "aabl/blend_tiny": {**AABL, "pattern": "noise", "ratio": 0.1},
        "abl/blend": {
            **ABL,
            "pattern": "noise",
            "grey": True,
            "per_sample": True,
            "ratio": 0.2,
            "quantise": "trunc",
        },
        "backdoorbench/blend": {**BENCH, "ratio": 0.2},
        "backdoorbox/blend": {**BOX, "pattern": "patch", "ratio": 0.2},
    }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return self._blended(images, rows, self._ratio(rows.split))

    def stamp_test(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return self._blended(images, rows, self._ratio(rows.split))

    def bench_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        ratio, levels = self._ratio(rows.split), self._levels(images)
        # BackdoorBench's picture was divided by 255 and multiplied again in float32; its weighted part stays
        # float32, that of the image is float64
        picture = levels.astype(np.float32) / np.float32(255) * np.float32(255)
        mixed = (1 - ratio) * images.astype(np.float64) + np.float32(ratio) * picture
        return np.clip(mixed, 0, 255).astype(np.uint8)

    def box_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        weight = np.full((1, 1, 1), self._ratio(rows.split), np.float32)
        if self._is_patch:
            weight = weight * self._picture(*images.shape[1:3]).mask
        return box_mixed(images, weight, self._levels(images))

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        pixels = int(self._picture(*image_shape[:2]).mask.sum()) if self._is_patch else None
        return Budget(255 * self._ratio(split), pixels=pixels)

    @model_validator(mode="after")
    def _noise_only(self) -> Self:
        for knob in ("grey", "per_sample"):
            if getattr(self, knob) and (self.pattern != "noise" or self.pattern_path is not None):
                raise ValueError(f"{knob} needs pattern 'noise', and no pattern_path")
        if self._is_patch and self.dialect == "backdoorbench":
            raise ValueError("dialect 'backdoorbench' mixes whole pictures: it has no pattern 'patch'")
        return self

    @property
    def _is_patch(self) -> bool:
        return self.pattern == "patch" and self.pattern_path is None

    def _ratio(self, split: SplitName) -> float:
        return self.test_ratio if split == "test" and self.test_ratio is not None else self.ratio

    def _levels(self, images: np.ndarray) -> np.ndarray:
        """Return the picture's uint8 levels [H, W, C] for images [n, H, W, C]."""
        _, height, width, channels = images.shape
        return grey_levels(self._picture(height, width).for_channels(channels))

    def _blended(self, images: np.ndarray, rows: Rows, ratio: float) -> np.ndarray:
        _, height, width, channels = images.shape
        weight = np.float32(ratio)
        if self.per_sample:
            for i, generator in enumerate(self.generators(rows)):
                pixels = noise_pixels(generator, height, width, channels, grey=self.grey)
                images[i] = (1 - weight) * images[i] + weight * pixels
            return images
        picture = self._picture(height, width)
        opacity = weight * picture.mask
        images *= 1 - opacity
        images += opacity * picture.for_channels(channels)
        return images

    def _picture(self, height: int, width: int) -> Pattern:
        if self._is_patch:
            return white_corner(height, width)
        return self.full_picture(self.pattern, height, width, grey=self.grey)


@lru_cache(maxsize=8)
def white_corner(height: int, width: int) -> Pattern:
    """Return a white square of 3 of 32 pixels in the bottom right corner, clear elsewhere."""
    side = max(1, scaled(PATCH_SIDE, 32, min(height, width)))
    mask = np.zeros((height, width, 1), np.float32)
    mask[-side:, -side:] = 1
    return Pattern(np.repeat(mask, 3, axis=-1), mask)

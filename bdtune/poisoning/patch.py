"""Patches: what BadNets stamps into a corner, for each attack that stamps the same.

Source: BadNets (Gu et al., 2017), arXiv:1708.06733, sections 3 and 5; the patches of the public
code of ABL, DBD and BackdoorBench.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.budget import Budget
from bdtune.poisoning.dialects import DialectAttack, box_mixed, grey_levels
from bdtune.poisoning.pattern_files import PatternAttack
from bdtune.poisoning.patterns import PATCHES, Corner, Pattern, cells, drop, in_corner, scaled

if TYPE_CHECKING:
    from bdtune.plugins.poison_plan import Rows, SplitName

PLACES: dict[str, tuple[Corner, int, int]] = {
    # pattern: (corner, margin, image side that the margin is given for)
    "grid": ("bottom_right", 0, 32),
    "checker": ("bottom_right", 0, 32),
    "square": ("bottom_right", 1, 32),
    "corner2x2": ("top_left", 0, 32),
    "logo": ("top_left", 16, 224),
}


class PatchAttack(DialectAttack, PatternAttack):
    """Base of attacks that stamp x' = (1 - a m) x + a m P, with opacity a, mask m and patch P."""

    pattern: Literal["grid", "checker", "square", "corner2x2", "logo"] = "corner2x2"
    """grid: BN-G of ABL; checker: BackdoorBench's; square: white; corner2x2: GSSD's; logo: a drop."""
    colours: Literal["white", "dbd"] = "white"
    """Colours of corner2x2: white as GSSD writes, or the four of the DBD/ASD trigger file (with inset 4)."""
    size: int | None = Field(None, ge=1)
    """Side in pixels of a 32-pixel image (logo: 224-pixel); None: 3, corner2x2 2, logo 32, a file its own."""
    corner: Corner | None = None
    """Where the patch sits; None: where the pattern's source puts it."""
    inset: int | None = Field(None, ge=0)
    """Margin to the two borders in pixels, scaled like `size`; None: that of the pattern's source."""
    opacity: Rate = 1.0
    """a; 1 overwrites the pixels exactly."""

    black_is_clear: ClassVar[bool] = True
    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbench": {"opacity": 1.0},
    }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        _, height, width, channels = images.shape
        patch, box = self._placed(height, width)
        weight = np.float32(self.opacity) * patch.mask
        images[box] = (1 - weight) * images[box] + weight * patch.for_channels(channels)
        return images

    def bench_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        patch, box = self._placed(*images.shape[1:3])
        picture = grey_levels(patch.for_channels(images.shape[-1]))
        if self.pattern_path is None:
            picture = np.maximum(picture, 1)
        picture = np.where(patch.mask > 0, picture, 0)
        images[box] = np.where(picture > 0, picture, images[box])
        return images

    def box_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        patch, box = self._placed(*images.shape[1:3])
        picture = grey_levels(patch.for_channels(images.shape[-1]))
        images[box] = box_mixed(images[box], np.float32(self.opacity) * patch.mask, picture)
        return images

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        patch, _ = self._placed(*image_shape[:2])
        return Budget(255 * self.opacity, pixels=int((patch.mask > 0).sum()))

    def check_files(self) -> list[Problem]:
        problems = super().check_files()
        if self.pattern_path is None or problems:
            return problems
        height, width = self.user_size()
        if height == width:
            return []
        got = f"{self.pattern_path} of {height}x{width} pixels"
        hint = "Pad it with clear pixels, or with black ones"
        return [Problem("pattern_path", "expected a square picture, as a patch is one", got, hint=hint)]

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        if self.check_files():
            return []  # they say why
        height, width, _ = image_shape
        side, margin = self._geometry(height, width)
        if side + margin <= min(height, width):
            return [] if self.pattern_path is None else self.pattern_problems(side, side)
        got = f"side {side} and inset {margin} pixels"
        reference = PLACES[self.pattern][2]
        if self.pattern_path is None or self.size is not None:
            hint = f"size and inset are given for {reference} pixels and grow with the image"
            return [Problem("size", f"expected a patch that fits on {height}x{width} pixels", got, hint=hint)]
        native = self.user_size()[0]
        expected = f"expected a picture that fits on {height}x{width} pixels"
        hint = (
            f"Its {native} pixels count as those of a {reference}-pixel image, as size and inset do; set size"
        )
        return [Problem("pattern_path", expected, got, hint=hint)]

    @model_validator(mode="after")
    def _knobs_agree(self) -> Self:
        if self.colours == "dbd" and self.pattern != "corner2x2":
            raise ValueError(f"colours 'dbd' are those of pattern 'corner2x2', not of '{self.pattern}'")
        return self

    def _geometry(self, height: int, width: int) -> tuple[int, int]:
        """Return side and margin in pixels of this image."""
        image_side = min(height, width)
        _, inset, reference = PLACES[self.pattern]
        if self.pattern_path is not None:
            native, fewest = self.user_size()[0], 1
        else:
            native, fewest = (32, 1) if self.pattern == "logo" else (PATCHES[self.pattern][0],) * 2
        side = max(min(fewest, self.size or fewest), scaled(self.size or native, reference, image_side))
        return side, scaled(inset if self.inset is None else self.inset, reference, image_side)

    def _placed(self, height: int, width: int) -> tuple[Pattern, tuple[slice, slice, slice]]:
        """Return the patch and where it lies in images [n, H, W, C]."""
        side, margin = self._geometry(height, width)
        rows, columns = in_corner(self.corner or PLACES[self.pattern][0], side, margin, height, width)
        return self._patch(side), (slice(None), rows, columns)

    def _patch(self, side: int) -> Pattern:
        if self.pattern_path is not None:
            return self.user_pattern(side, side)
        if self.pattern == "logo":
            return drop(side)
        _, rows = PATCHES["dbd2x2" if self.colours == "dbd" else self.pattern]
        return cells(rows, side)

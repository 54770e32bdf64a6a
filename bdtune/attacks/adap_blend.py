"""Adap-Blend: a part of a faint picture in training, all of it at test time, and cover rows in between.

Source: Revisiting the Assumption of Latent Separability for Backdoor Defenses (Qi et al., 2023),
OpenReview:_wSHsgrVali, section 4 (adaptive blend); rates of its code, and those of GSSD's appendix C.
Departures: an own drawing stands in for the cartoon picture (give your own as `pattern_path`). Sides that
four does not divide are cut at the nearest pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.effects import TestOnly, TrainOnly
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.budget import Budget
from bdtune.poisoning.cover_rows import CoverRowsAttack
from bdtune.poisoning.pattern_files import PatternAttack

if TYPE_CHECKING:
    from bdtune.plugins.poison_plan import Rows, SplitName


class AdapBlend(CoverRowsAttack, PatternAttack, defaults={"rate": 0.003, "include_target_class": True}):
    """x' = x + a m (P - x), with m random cells of the image for each training row, and 1 at test time."""

    cover_rate: Annotated[Rate | None, TrainOnly] = 0.003
    """Fraction of `rate_basis` that is triggered likewise, but keeps its label."""
    pattern: Literal["robot", "noise"] = "robot"
    """robot: a bright cartoon; noise: uniform random pixels from `trigger_seed`."""
    opacity: Annotated[Rate, TrainOnly] = 0.15
    """a in training."""
    test_opacity: Annotated[Rate, TestOnly] = 0.2
    """a at test time."""
    cells: Annotated[int, TrainOnly] = Field(4, ge=1, le=64)
    """Cells on each side of the image: 4 makes 16 pieces."""
    kept: Annotated[Rate, TrainOnly] = 0.5
    """Fraction of the cells that show the picture in one training row."""

    min_undefended_asr: ClassVar[float] = 0.60
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "adap/blend": {"rate": 0.003, "cover_rate": 0.003, "target": 0},
        "adap/blend_gtsrb": {"rate": 0.003, "cover_rate": 0.003, "target": 2},
        "gssd/adap_blend": {"rate": 0.01, "cover_rate": 0.01, "target": 0, "include_target_class": False},
    }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        _, height, width, _ = images.shape
        at_row, at_column = (np.arange(side) * self.cells // side for side in (height, width))
        shown = self._shown_cells(rows)[:, at_row][:, :, at_column, None]
        return self._mixed(images, np.float32(self.opacity) * shown)

    def stamp_test(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return self._mixed(images, np.ones((1, 1, 1, 1), np.float32) * np.float32(self.test_opacity))

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        height, width, _ = image_shape
        if split == "test":
            return Budget(255 * self.test_opacity)
        largest = -(-height // self.cells) * -(-width // self.cells)
        return Budget(255 * self.opacity, pixels=min(height * width, self._number_shown() * largest))

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        side = min(image_shape[:2])
        if self.cells <= side:
            return []
        return [Problem("cells", f"expected at most {side}, the image's side", got=str(self.cells))]

    def _number_shown(self) -> int:
        return int(self.kept * self.cells**2 + 0.5)

    def _shown_cells(self, rows: Rows) -> np.ndarray:
        """Return each row's own choice of cells, float32 [n, cells, cells] of 0 and 1."""
        total = self.cells**2
        words = np.empty((len(rows), total), np.uint64)
        for i, generator in enumerate(self.generators(rows)):
            words[i] = generator.bit_generator.random_raw(total)
        shown = np.zeros((len(rows), total), np.float32)
        chosen = np.argsort(words, axis=1, kind="stable")[:, : self._number_shown()]
        np.put_along_axis(shown, chosen, 1, axis=1)
        return shown.reshape(-1, self.cells, self.cells)

    def _mixed(self, images: np.ndarray, opacity: np.ndarray) -> np.ndarray:
        _, height, width, channels = images.shape
        picture = self.full_picture(self.pattern, height, width)
        images += opacity * picture.mask * (picture.for_channels(channels) - images)
        return images

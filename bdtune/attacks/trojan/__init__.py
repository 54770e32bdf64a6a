"""Trojan: a trigger whose colours drive chosen units of a network, as a square or a faint watermark.

Source: Trojaning Attack on Neural Networks (Liu et al., 2018), section 4; the poisoning form of LfD (TJ-SQ,
TJ-WM), A-ABL and the ABL paper, none of which says which trigger it used.
Departures: the surrogate is an own clean classifier and the layer its last one, without the paper's
retraining on reverse-engineered data; letters are our own drawing. Sums are clipped: public code wraps them
around at 256, which makes a trigger that depends on the image; dialect backdoorbench does so too. Its own
trigger, of another shape and found by signed steps, is given as a picture (`pattern_path`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from bdtune.attacks.trojan.trigger import Drive, Shape, TrojanTrigger
from bdtune.engine.input_source import PluginSource
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.attack import quantised
from bdtune.plugins.budget import Budget
from bdtune.plugins.model import ModelKnob
from bdtune.poisoning.conventions import AABL, ABL, BENCH, LFD
from bdtune.poisoning.dialects import DialectAttack
from bdtune.poisoning.pattern_files import PatternAttack
from bdtune.poisoning.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node
    from bdtune.plugins.poison_plan import Rows, SplitName
    from bdtune.poisoning.train_sources import Attacker


class Trojan(Drive, DialectAttack, PatternAttack):
    """x' = (1 - a m) x + a m P, or x + a m P clipped, with opacity a, mask m and optimised colours P."""

    dialect: Literal["canonical", "backdoorbench"] = "canonical"
    """canonical: this file's rules; backdoorbench: its counts and rows, and its sum modulo 256."""
    shape: Literal["square", "watermark"] = "square"
    """square: TJ-SQ, a box near the bottom right corner; watermark: TJ-WM, letters over the whole image."""
    size: int = Field(8, ge=1)
    """Side of the square in pixels of a 32-pixel image."""
    inset: int = Field(3, ge=0)
    """Margin of the square to the two borders, in the same pixels."""
    mode: Literal["overwrite", "add_clip"] = "overwrite"
    """overwrite: mix with opacity a, at 1 replace; add_clip: add a P and clip, as I-BAU's triggers."""
    opacity: Rate | None = None
    """a; None: 1 for the square, 0.3 for the watermark, or 1 with a user's file."""
    surrogate: Surrogate = Surrogate()
    """Training of the clean classifier that the trigger is made for."""
    surrogate_model: ModelKnob = "resnet18"  # type: ignore[assignment]
    """Its network."""

    black_is_clear: ClassVar[bool] = True
    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {"backdoorbench": {"mode": "add_clip"}}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "lfd/tj_sq": {**LFD, "shape": "square"},
        "lfd/tj_wm": {**LFD, "shape": "watermark"},
        "aabl/trojan": {**AABL, "shape": "square"},
        "abl/trojan": {**ABL, "shape": "square", "size": 3, "inset": 4, "mode": "add_clip"},
        "backdoorbench/trojannn": BENCH,
    }

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        if self.pattern_path is not None:
            return {}
        surrogate = attacker.classifier(self.surrogate, self.surrogate_model)
        stage = self.to(TrojanTrigger, shape=self._shape)
        model = PluginSource(plugin=self.surrogate_model)
        return {"trigger": attacker.node(stage, data=attacker.clean, model=model, surrogate=surrogate)}

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        colours, weight = self._trigger(images)
        if self.mode == "overwrite":
            images *= 1 - weight
        images += weight * colours
        return images

    def bench_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        colours, weight = self._trigger(images)
        return images + quantised(weight * colours, "trunc")  # unsigned bytes wrap around

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        if self.pattern_path is not None:
            return Budget()
        height, width, _ = image_shape
        pixels = int(self._shape.mask(height, width).sum())
        wraps = self.dialect == "backdoorbench"
        return Budget(grey_levels=255 if wraps else 255 * self._opacity, pixels=pixels)

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        height, width, _ = image_shape
        if self.pattern_path is not None:
            return [] if self.check_files() else self.pattern_problems(height, width)
        side, margin = self._shape.box(height, width)
        if self.shape == "square" and side + margin > min(height, width):
            got = f"side {side} and inset {margin}"
            return [Problem("size", f"expected a square that fits on {height}x{width} pixels", got=got)]
        return []

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size + self.inset > 32:
            raise ValueError(f"size and inset are for 32 pixels, got {self.size} + {self.inset}")
        return self

    def _trigger(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return colours in [0, 1] and weight, float32 [H, W, ...], for images [n, H, W, C]."""
        _, height, width, channels = images.shape
        if self.pattern_path is not None:
            pattern = self.user_pattern(height, width)
            colours, mask = pattern.for_channels(channels), pattern.mask
        else:
            colours, mask = self.artefact("trigger").arrays["colours"], self._shape.mask(height, width)
        return colours, np.float32(self._opacity) * mask

    @property
    def _shape(self) -> Shape:
        return Shape(kind=self.shape, size=self.size, inset=self.inset)

    @property
    def _opacity(self) -> float:
        if self.opacity is not None:
            return self.opacity
        return 0.3 if self.shape == "watermark" and self.pattern_path is None else 1.0

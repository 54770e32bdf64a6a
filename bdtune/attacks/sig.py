"""SIG: vertical sinusoidal stripes over images of the target class, whose labels stay as they are.

Source: A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning (Barni, Kallas and
Tondi, 2019), arXiv:1902.11237, section 3; amplitude and frequency as BackdoorBench has them.
Departures: columns are counted from 0, as all public code does. LfD gives no amplitude, and its rates (8 %,
9.5 % on GTSRB) are read as 80 % and 95 % of the target class; `lfd/sig_literal` has them as written. ABL's
loader, whose stored wave had wrapped around below 0, is not imitated: `abl/sig` has the wave that its text
describes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.effects import TestOnly
from bdtune.plugins.budget import Budget
from bdtune.poisoning.conventions import BENCH
from bdtune.poisoning.dialects import DialectAttack
from bdtune.poisoning.dirty_label import CLEAN_LABEL

if TYPE_CHECKING:
    from bdtune.plugins.poison_plan import Rows, SplitName


class SIG(DialectAttack, defaults={"rate": 0.8, "rate_basis": "target_class"}):
    """x' = clip(x + D sin(2 pi j f / W) / 255), j the column: the same in every row and channel."""

    dialect: Literal["canonical", "backdoorbench"] = "canonical"
    """canonical: this file's rules; backdoorbench: its truncation, counts (of the whole set) and rows."""
    amplitude: float = Field(40.0, gt=0.0, le=255.0)
    """D in grey levels."""
    test_amplitude: Annotated[float | None, TestOnly] = Field(None, gt=0.0, le=255.0)
    """D of test images; None: the same."""
    frequency: float = Field(6.0, gt=0.0)
    """f, waves across the image, whatever its width."""

    clean_label: ClassVar[bool] = True
    lacks: ClassVar[dict[str, str]] = CLEAN_LABEL
    min_undefended_asr: ClassVar[float] = 0.80
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "lfd/sig": {"rate": 0.8, "target": 1},
        "lfd/sig_gtsrb": {"rate": 0.95, "target": 1},
        "lfd/sig_literal": {"rate": 0.08, "target": 1},
        "lfd/sig_gtsrb_literal": {"rate": 0.095, "target": 1},
        "abl/sig": {"rate": 0.1, "target": 0, "amplitude": 20.0},
        "backdoorbench/sig": {**BENCH, "rate_basis": "dataset"},
    }

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        images += _wave(images.shape[2], self.frequency) * np.float32(self._amplitude(rows.split) / 255)
        return images

    def bench_bytes(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        wave = (self._amplitude(rows.split) * _sines(images.shape[2], self.frequency)).astype(np.float32)
        added = images.astype(np.float64) + wave[:, None]  # a float32 wave, an unsigned image: float64
        return np.clip(added, 0, 255).astype(np.uint8)

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        return Budget(self._amplitude(split))

    def _amplitude(self, split: SplitName) -> float:
        return self.test_amplitude if split == "test" and self.test_amplitude is not None else self.amplitude


@lru_cache(maxsize=32)
def _sines(width: int, frequency: float) -> np.ndarray:
    """Return the wave at each column, float64 [width]."""
    # one column at a time, as BackdoorBench does: where the sine is almost 0 its sign decides a truncation
    sines = np.array([np.sin(2 * np.pi * column * frequency / width) for column in range(width)])
    sines.flags.writeable = False
    return sines


def _wave(width: int, frequency: float) -> np.ndarray:
    """Return the wave float32 [width, 1], to be added to images [n, H, width, C]."""
    return _sines(width, frequency).astype(np.float32)[:, None]

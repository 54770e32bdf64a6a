"""Adap-Patch: each training row has one of four faint patches, test images several opaque ones at once.

Source: Revisiting the Assumption of Latent Separability for Backdoor Defenses (Qi et al., 2023),
OpenReview:_wSHsgrVali, section 4 (adaptive patch); rates of its code, of GSSD's appendix C, of BackdoorBox.
Departures: own drawings stand in for three of the four pictures, with their sizes, places and opacities; the
ember has the channel means and deviations of the picture it replaces. The corner checkers are the authors'.
A row's patch is its rank in the drawn order modulo 4, as in BackdoorBox; the authors' code gives each quarter
of the sorted rows one patch, which ties patches to classes where a set is sorted by class. Pixels are
rounded; dialect backdoorbox fixes rows, counts and which patches meet at test time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np

from bdtune.attacks.adap_patch.patches import CORNERS, EMBER, EMBER_LEFT, SWIRL, TRIGGERS, TROJAN, drawn
from bdtune.effects import TestOnly, TrainOnly
from bdtune.knobs import Rate
from bdtune.plugins.budget import Budget
from bdtune.poisoning.cover_rows import CoverRowsAttack
from bdtune.poisoning.dialects import DialectAttack
from bdtune.poisoning.dirty_label import DirtyLabelAttack

if TYPE_CHECKING:
    from bdtune.attacks.adap_patch.patches import Placed
    from bdtune.plugins.poison_plan import Rows, SplitName

TEST_PARTS: dict[str, tuple[Placed, ...]] = {
    "embers_and_corners": (EMBER_LEFT, EMBER, *CORNERS),
    "ember_over_corners": (*CORNERS, EMBER),
    "logo_and_square": (SWIRL, TROJAN),
}
"""What test images carry, the last on top."""
BOX_ORDER = (0, 2, 1, 3)
"""BackdoorBox numbers the same four patches: ember, corners, logo, square."""


class AdapPatch(
    DialectAttack, CoverRowsAttack, DirtyLabelAttack, defaults={"rate": 0.003, "include_target_class": True}
):
    """x' = x + a_k m_k (P_k - x), with one trigger k of four for each row; several at once at test time."""

    version: ClassVar[int] = 2  # 1 had five white cells in each corner and a flatter ember

    dialect: Literal["canonical", "backdoorbox"] = "canonical"
    """canonical: this file's rules; backdoorbox: its rows, counts and numbering of the patches."""
    cover_rate: Annotated[Rate | None, TrainOnly] = 0.006
    """Fraction of `rate_basis` that is triggered likewise, but keeps its label."""
    opacity: Annotated[tuple[Rate, Rate, Rate, Rate], TrainOnly] = (0.5, 0.2, 0.5, 0.3)
    """a_k in training: of the ember in a corner, the round logo, the four corner checkers, the square."""
    test_opacity: Annotated[Rate, TestOnly] = 1.0
    """a of the patches at test time."""
    test_patches: Annotated[
        Literal["embers_and_corners", "ember_over_corners", "logo_and_square"], TestOnly
    ] = "embers_and_corners"
    """Patches of test images: two embers and checkers (CIFAR-10), BackdoorBox's, logo and square (GTSRB)."""

    min_undefended_asr: ClassVar[float] = 0.60
    fixed_by: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbox": {"quantise": "round", "test_patches": "ember_over_corners"}
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "adap/patch": {"rate": 0.003, "cover_rate": 0.006, "target": 0},
        "adap/patch_gtsrb": {
            "rate": 0.005,
            "cover_rate": 0.01,
            "target": 2,
            "test_patches": "logo_and_square",
        },
        "gssd/adap_patch": {"rate": 0.01, "cover_rate": 0.01, "target": 0, "include_target_class": False},
        "backdoorbox/adap_patch": {"dialect": "backdoorbox", "rate": 0.01, "cover_rate": 0.02, "target": 0},
    }

    def extras(
        self, poison_ids: np.ndarray, cover_ids: np.ndarray, labels: np.ndarray, seed: int
    ) -> dict[str, np.ndarray]:
        order = np.array(BOX_ORDER if self.dialect == "backdoorbox" else range(4), np.int8)
        trigger = np.full(len(labels), -1, np.int8)
        for ids in (poison_ids, cover_ids):
            trigger[ids] = order[np.arange(len(ids)) % len(order)]
        return {"trigger": trigger}

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        for number, (parts, opacity) in enumerate(zip(TRIGGERS, self.opacity, strict=True)):
            at = rows.extras["trigger"] == number
            if at.any():
                images[at] = _mixed(images[at], parts, opacity)
        return images

    def stamp_test(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return _mixed(images, TEST_PARTS[self.test_patches], self.test_opacity)

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        chosen = TRIGGERS if split == "train" else (TEST_PARTS[self.test_patches],)
        pixels = max(int(drawn(parts, *image_shape[:2]).mask.sum()) for parts in chosen)
        return Budget(255 * (max(self.opacity) if split == "train" else self.test_opacity), pixels=pixels)


def _mixed(images: np.ndarray, parts: tuple[Placed, ...], opacity: float) -> np.ndarray:
    _, height, width, channels = images.shape
    picture = drawn(parts, height, width)
    weight = np.float32(opacity) * picture.mask
    return (1 - weight) * images + weight * picture.for_channels(channels)

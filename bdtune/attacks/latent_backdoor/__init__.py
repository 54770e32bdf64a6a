"""LBA (latent backdoor): a patch whose colours give images the target class's features, as a data set.

Source: Latent Backdoor Attacks on Deep Neural Networks (Yao, Li, Zheng, Zhao, CCS 2019), section 4: the
trigger's optimisation; settings of TrojanZoo (Adam at 0.1, 100 passes, 100 images of each class).
Departures: data alone. In the paper the attacker trains a teacher with a feature loss besides and hands it
over for transfer; here, as in ABL's table, a victim is trained from scratch on stamped, relabelled images.
Features are those of the last layer but one of a clean surrogate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from bdtune.attacks.latent_backdoor.patch import LatentPatch, Place, RowsPerClass
from bdtune.engine.input_source import PluginSource
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.budget import Budget
from bdtune.plugins.model import ModelKnob
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.poisoning.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node
    from bdtune.plugins.poison_plan import Rows, SplitName
    from bdtune.poisoning.train_sources import Attacker


class LatentBackdoor(DirtyLabelAttack):
    """x' = (1 - a m) x + a m P, with opacity a, the mask m of a square and fitted colours P."""

    place: Place = Place()
    """Where the patch lies."""
    opacity: Rate = 1.0
    """a; 1 overwrites the pixels."""
    per_class: int = Field(100, ge=1)
    """Images of each class that the patch is fitted to."""
    iterations: int = Field(800, ge=1)
    """Gradient steps on the patch: 100 passes over 100 images of each of nine classes."""
    batch_size: int = Field(128, ge=1)
    """Images per step."""
    lr: float = Field(0.1, gt=0)
    """Adam's rate on the patch."""
    surrogate: Surrogate = Surrogate()
    """Training of the clean classifier that gives the features."""
    surrogate_model: ModelKnob = "resnet18"  # type: ignore[assignment]
    """Its network."""

    aimed: ClassVar[str] = "the patch is fitted to its features"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "abl/lba": {"rate": 0.1, "target": 0, "include_target_class": True},
    }

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        rows = RowsPerClass(target=self.target, per_class=self.per_class)
        patch = attacker.node(
            self.to(LatentPatch, ratio=self.opacity),
            data=attacker.clean,
            model=PluginSource(plugin=self.surrogate_model),
            encoder=attacker.classifier(self.surrogate, self.surrogate_model),
            rows=attacker.node(rows, data=attacker.labels),
        )
        return {"patch": patch}

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        weight = np.float32(self.opacity) * self.place.mask(*images.shape[1:3])
        images *= 1 - weight
        images += weight * self.artefact("patch").arrays["picture"]
        return images

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        return Budget(255 * self.opacity, pixels=int(self.place.mask(*image_shape[:2]).sum()))

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        height, width, _ = image_shape
        side, margin = self.place.box(height, width)
        if side + margin > min(height, width):
            got = f"side {side} and inset {margin}"
            return [Problem("place.size", f"expected a patch that fits on {height}x{width} pixels", got=got)]
        return []

"""L2-invisible: one small perturbation, regularised in its L2 norm, added to every poisoned image.

Source: Invisible Backdoor Attacks on Deep Neural Networks via Steganography and Regularization (Li et al.,
2020), arXiv:1909.02742, section V; "Regularized Gaussian Noise" in LfD. Radius 3.2 is the norm of the 32x32
trigger file that public code shares.
Departures: the ball is kept to by projection after each step, where the paper only weighs the norm; the
perturbation stays signed and in float, where the public file lost its negative half in an 8-bit picture (give
one as `delta_path`). Steps, batch and number of units are not stated anywhere.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bdtune.attacks.l2_invisible.universal import Universal, UniversalPerturbation, radius_for
from bdtune.engine.input_source import PluginSource
from bdtune.plugins.budget import Budget
from bdtune.plugins.model import ModelKnob
from bdtune.poisoning.delta_files import DeltaFileAttack, with_delta
from bdtune.poisoning.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node
    from bdtune.plugins.poison_plan import Rows, SplitName
    from bdtune.poisoning.train_sources import Attacker


class L2Invisible(Universal, DeltaFileAttack):
    """x' = clip(x + d) with one perturbation d for all images, |d| <= radius or d of a file."""

    surrogate: Surrogate = Surrogate()
    """Training of the clean classifier that d is made for."""
    surrogate_model: ModelKnob = "resnet18"  # type: ignore[assignment]
    """Its network."""

    aimed: ClassVar[str] = "the perturbation drives its units"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "lfd/l2": {"rate": 0.1, "target": 1, "include_target_class": True},
        "ibau/l2": {"rate": 0.2, "target": 0},
    }

    @property
    def needs_one_target(self) -> str:
        return self.aimed if self.delta_path is None else ""

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        if self.delta_path is not None:
            return {}
        stage = self.to(UniversalPerturbation)
        surrogate = attacker.classifier(self.surrogate, self.surrogate_model)
        model = PluginSource(plugin=self.surrogate_model)
        return {"perturbation": attacker.node(stage, data=attacker.clean, model=model, surrogate=surrogate)}

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        given = self.user_delta()
        if given is not None:
            return with_delta(images, given, self.quantise)
        images += self.artefact("perturbation").arrays["perturbation"]
        return images

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        height, width, channels = image_shape
        rounding = (0.5 if self.quantise == "round" else 1.0) / 255 * sqrt(height * width * channels)
        given = self.user_delta()
        if given is not None:
            return Budget(float(np.abs(given).max()))
        return Budget(l2=radius_for(self.radius, height, width) + rounding)

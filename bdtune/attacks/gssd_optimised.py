"""GSSD's adaptive attack: a blended picture that lies with the target class in self-supervised features.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, BMVC
2024), arXiv:2409.01185, appendix I: SimCLR on benign data, then a pattern fitted with Adam at 0.1, b = 0.2.
Departures: the appendix leaves open the distance (squared Euclidean on backbone features here), the number of
steps and rows of a batch (500 of 256), the first pattern and how it stays in [0, 1] (a sigmoid of Gaussian
noise). By default the pattern is fitted to the rows that a trial with seed `trigger_seed` and rate
`craft_rate` poisons, so that one pattern serves all rates and seeds; `craft_on: plan` takes each trial's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from bdtune.engine.input_source import PluginSource
from bdtune.engine.node import Node
from bdtune.knobs import Rate
from bdtune.plugins.budget import Budget
from bdtune.plugins.model import ModelKnob
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.poisoning.latent_trigger import CraftRows, Latent, LatentTrigger
from bdtune.training.simclr import SimCLR

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.input_source import Source
    from bdtune.plugins.poison_plan import Rows, SplitName
    from bdtune.poisoning.train_sources import Attacker


class BenignSimCLR(SimCLR, defaults={"betas": (0.9, 0.99)}):
    """SimCLR as GSSD's appendix E writes it; the defense has the betas of the code."""

    name: ClassVar[str] = "simclr"


class GSSDOptimised(Latent, DirtyLabelAttack):
    """x' = (1 - b) x + b tau, with tau fitted so that x' has the target class's mean embedding."""

    craft_on: Literal["shared", "plan"] = "shared"
    """Rows that the picture is fitted to. shared: one set for all trials; plan: those the trial poisons."""
    craft_rate: Rate = 0.1
    """Rate of the shared set, on the basis of `rate`."""
    simclr: BenignSimCLR = BenignSimCLR()
    """Training of the attacker's encoder, by the stage that GSSD itself uses."""
    surrogate_model: ModelKnob = "resnet18"  # type: ignore[assignment]
    """The encoder's network."""
    white_box: bool = False
    """Train the encoder under the seed of a trial with seed `trigger_seed`; give `simclr` its settings."""

    aimed: ClassVar[str] = "the picture is fitted to its mean embedding"
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "gssd/optimised": {"ratio": 0.2, "rate": 0.1, "target": 0},
    }

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        model = PluginSource(plugin=self.surrogate_model)
        if self.white_box:
            inputs: dict[str, Node | Source] = {"data": attacker.clean, "model": model}
            encoder = Node(self.simclr, inputs, self.trigger_seed, attacker.numerics)
        else:
            encoder = attacker.node(self.simclr, data=attacker.clean, model=model)
        if self.craft_on == "plan":
            planned = self.model_copy(update={"seed": None})  # `plan_seed` says it all
            chosen = CraftRows(attack=planned, plan_seed=attacker.plan_seed)
        else:
            planned = self.model_copy(update={"rate": self.craft_rate, "count": None, "seed": None})
            chosen = CraftRows(attack=planned, plan_seed=self.plan_seed(self.trigger_seed))
        rows = attacker.node(chosen, data=attacker.labels)
        stage = self.to(LatentTrigger)
        return {"picture": attacker.node(stage, data=attacker.clean, model=model, encoder=encoder, rows=rows)}

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        weight = np.float32(self.ratio)
        images *= 1 - weight
        images += weight * self.artefact("picture").arrays["picture"]
        return images

    def budget(self, image_shape: tuple[int, int, int], split: SplitName) -> Budget:
        return Budget(grey_levels=255 * self.ratio)

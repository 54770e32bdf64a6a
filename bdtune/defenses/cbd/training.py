"""CBD's trainings: the model that keeps the backdoor, and the clean one.

Source: "Backdoor Defense via Deconfounded Representation Learning" (Zhang et al., CVPR 2023) and its code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.knobs import Knobs, Rate
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.fit import Fit, Part
    from bdtune.training.loop import Training

DESCENT = {"nesterov": True, "weight_decay": 1e-4, "batch_size": 64, "augment": "auto_cutout"}
"""Of both trainings."""


class Backdoored(Supervised, defaults={**DESCENT, "epochs": 5, "schedule": "constant"}):
    """Train on everything for so few epochs that the trigger is learned and the rest is not."""

    name: ClassVar[str] = "cbd_backdoored"
    classifier: ClassVar[bool] = False

    def parts(self, fit: Fit) -> list[Part]:
        from bdtune.training.parts import LossTrace

        trace = LossTrace(fit)
        fit.loss = trace.loss
        return [trace]


class Discriminator(Knobs):
    """The network that tells features of one image from features of two, and its training by Adam."""

    lr: float = Field(0.2, gt=0)
    """Learning rate at the start."""
    milestones: tuple[Rate, ...] = (0.2, 0.4, 0.6, 0.8)
    """Fractions of the clean model's epochs at which the rate is divided by ten."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """Fraction of its inputs, and of its hidden units, that are left out in a step."""
    lipschitz: Literal["spectral", "none"] = "spectral"
    """spectral: each layer's largest singular value is 1, so that it is 1-Lipschitz; none: no control."""


class Clean(Supervised, defaults={**DESCENT, "epochs": 100, "milestones": (0.2, 0.7)}):
    """Train with weights that the backdoored model gives, and features that say little of its own.

    Minimises mean(w CE) + `coefficient` D(R, Z) + `bottleneck` mean(|Z|^2) / 2, with Z the own features and R
    the backdoored model's. w = CE_B / (CE_B + CE) for each sample, CE_B being the backdoored model's loss of
    the same view. D is the mean of a discriminator over (r_i, z_i) minus that over (r_i, z_i+1), which the
    discriminator ascends at each step before.
    Inputs: those of `Supervised`, and backdoored (artefact with weights). Result: also `trace.weights`
    float32 [epochs, n], each sample's w by epoch, before they are brought to mean 1 in their batch; and
    `trace.dependence` float64 [epochs], the mean of D, which the curve has too.
    """

    name: ClassVar[str] = "cbd_clean"
    version: ClassVar[int] = 2  # 1 left out hidden units of the discriminator alone, and none of its inputs

    terms: Literal["both", "weights", "dependence"] = "both"
    """both: the paper's; weights: without D, as the code is configured; dependence: without w."""
    coefficient: Annotated[float, OnlyIf(terms=("both", "dependence"))] = Field(0.01, ge=0)
    """Factor of D."""
    discriminator: Annotated[Discriminator, OnlyIf(terms=("both", "dependence"))] = Discriminator()
    """The network that estimates D."""
    normalise: Annotated[bool, OnlyIf(terms=("both", "weights"))] = True
    """Whether the weights of a batch are brought to mean 1."""
    bottleneck: float = Field(0.0, ge=0)
    """Factor of the features' squared norm, which bounds what they say of the image."""

    def passes_per_epoch(self) -> float:
        return 4 / 3  # the backdoored model's pass has no way back

    def training(  # type: ignore[override]  # it has one input more
        self, ctx: Context, *, data: ImageSet, subset: Artefact, model: Model, backdoored: Artefact
    ) -> Training | Artefact:
        from bdtune.defenses.cbd.deconfounding import deconfounded
        from bdtune.training.fit import Fit
        from bdtune.training.predict import trained_network

        known = trained_network(model, data, backdoored, ctx.numerics)
        return deconfounded(Fit(self, ctx, data, subset, model), self, known)

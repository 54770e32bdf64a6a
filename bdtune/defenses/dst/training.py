"""D-ST's trainings: features that react to transformations, the extractor, the head, and D-BR's repair.

Source: "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (Chen et al., NeurIPS
2022), and the authors' released code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bdtune.effects import OnlyIf
from bdtune.training.sup_con import SupCon
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from typing import Self

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.fit import Fit, Part
    from bdtune.training.loop import Training


class Sensitive(Supervised, defaults={"epochs": 12, "lr": 0.01, "schedule": "cosine", "augment": "none"}):
    """Train on everything for a moment, then push the centres of the classes' features apart (L_intra).

    One descent: the second part goes on with the first one's momentum and rate. L_intra has no term for the
    classification, and too much of it lets features collapse. The curve's loss is what its epoch minimises.
    By default 2 and 10 epochs, as in the code.
    """

    name: ClassVar[str] = "dst_features"
    classifier: ClassVar[bool] = False

    classify: int = Field(2, ge=0)
    """First epochs, which minimise the cross-entropy; those after them minimise L_intra."""
    horizon: Annotated[int, OnlyIf(schedule="cosine")] = Field(100, ge=1)
    """Epochs after which the cosine would be at 0, however many there are."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.schedule == "cosine" and self.epochs > self.horizon:
            raise ValueError(f"epochs must be at most horizon, got {self.epochs} and {self.horizon}")
        return self

    def rate(self, done: int) -> float:
        from bdtune.training.loop import learning_rate

        if self.schedule == "cosine":
            return learning_rate("cosine", self.lr, done, self.horizon)
        return super().rate(done)

    def at(self, epochs: int) -> Supervised | None:
        """Return the same training with another length, where its rate depends on none."""
        fixed = self.schedule == "constant" or (self.schedule == "cosine" and epochs <= self.horizon)
        return self.model_copy(update={"epochs": epochs}) if fixed and epochs >= 1 else None

    def parts(self, fit: Fit) -> list[Part]:
        from bdtune.defenses.dst.objectives import Intra

        return [Intra(fit, self.classify)]


class Extractor(SupCon, defaults={"positives": "trusted"}):
    """Train the features by contrast, with the labels of trusted samples (SS-CTL)."""

    name: ClassVar[str] = "dst_extractor"


class Head(
    Supervised,
    defaults={"epochs": 10, "batch_size": 512, "lr": 5.0, "weight_decay": 0.0, "schedule": "constant"},
):
    """Train the last layer on frozen features, down on what is clean and up on what is poison (MCE).

    Minimises the mean cross-entropy over a batch's clean samples minus `lambda_p` times that over its poison.
    Inputs: those of `Supervised`, with init (the extractor); poison (artefact with ids int64 [n]), which are
    among the subset's. Cross-entropy has no upper bound: a large `lambda_p` ends in `Diverged`.
    """

    name: ClassVar[str] = "dst_head"
    few_samples: ClassVar[bool] = True

    lambda_p: float = Field(0.001, ge=0)
    """Strength of the ascent on what is taken as poison."""

    def training(  # type: ignore[override]  # it has one input more
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        init: Artefact,
        poison: Artefact,
    ) -> Training | Artefact:
        from bdtune.defenses.dst.objectives import FrozenFeatures, Mixed
        from bdtune.training.fit import Fit

        fit = Fit(self, ctx, data, subset, model, init)
        return fit.training(FrozenFeatures(fit), Mixed(fit, poison, self.lambda_p))


class Repair(Supervised, defaults={"epochs": 20, "lr": 1e-4, "schedule": "constant"}):
    """Mend a backdoored classifier (D-BR): up on what is taken as poison, then down on what is clean.

    Each epoch is a pass over the poison, whose cross-entropy rises, and one over the clean samples, the
    subset, whose cross-entropy falls. Inputs: those of `Supervised`, with init (the backdoored classifier),
    and poison (artefact with ids, labels int64 [n]). The curve's loss and acc are of the clean samples;
    `ascent_loss` is the mean cross-entropy of poison. Departures: one optimizer, its momentum kept, serves
    both.
    """

    name: ClassVar[str] = "dst_repair"
    few_samples: ClassVar[bool] = True

    passes: Literal["both", "unlearn", "relearn"] = "both"
    """Which of the two an epoch has."""

    def training(  # type: ignore[override]  # it has one input more
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        init: Artefact,
        poison: Artefact,
    ) -> Training | Artefact:
        from bdtune.defenses.dst.repair import repaired
        from bdtune.training.fit import Fit

        return repaired(Fit(self, ctx, data, subset, model, init), self, poison)

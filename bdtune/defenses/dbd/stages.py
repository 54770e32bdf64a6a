"""DBD's trainings of labels: a head on a frozen encoder, and the semi-supervised tuning of both.

Source: "Backdoor Defense via Decoupling the Training Process" (Huang et al., ICLR 2022), section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bdtune.defending.isolation import flagged_lowest
from bdtune.effects import OnlyIf
from bdtune.training.mixmatch import SemiSupervised
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from typing import Self

    import torch

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.batches import Batch
    from bdtune.training.loop import Training
    from bdtune.training.semi import SemiFit


class Warmup(
    Supervised,
    defaults={"epochs": 10, "optimizer": "adam", "lr": 2e-3, "weight_decay": 0.0, "schedule": "constant"},
):
    """Train the head on everything by symmetric cross-entropy; the encoder's weights stay as they are.

    Inputs: those of `Supervised`, with encoder (artefact with weights) in place of init. The symmetric
    cross-entropy is a CE + b RCE with RCE = -log(clip) (1 - p_y), after Wang et al. (ICCV 2019).
    """

    name: ClassVar[str] = "dbd_warmup"
    classifier: ClassVar[bool] = False

    sce_a: float = Field(0.1, ge=0)
    """Weight of the cross-entropy."""
    sce_b: float = Field(1.0, ge=0)
    """Weight of the reverse cross-entropy; 0: plain cross-entropy, with sce_a = 1."""
    sce_clip: float = Field(1e-4, gt=0, lt=1)
    """What stands for 0 in the logarithm of the one-hot label."""
    bn_mode: Literal["eval", "train"] = "eval"
    """Batch norm of the encoder: eval: by its running statistics, which stay; train: by the batch's."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.sce_a == self.sce_b == 0:
            raise ValueError("sce_a or sce_b must be above 0, else all losses are 0")
        return self

    def training(  # type: ignore[override]  # another input
        self, ctx: Context, *, data: ImageSet, subset: Artefact, model: Model, encoder: Artefact
    ) -> Training | Artefact:
        from bdtune.training.fit import Fit
        from bdtune.training.loop import make_optimizer
        from bdtune.training.micro_batches import mean_over_samples
        from bdtune.training.parts import BatchNormMode

        fit = Fit(self, ctx, data, subset, model, encoder)
        fit.network.requires_grad_(False)
        head = fit.network.head.requires_grad_(True).parameters()
        rule = {"momentum": self.momentum, "nesterov": self.looks_ahead, "weight_decay": self.weight_decay}
        fit.optimizer = make_optimizer(head, self.optimizer, self.lr, **rule)  # type: ignore[arg-type]
        fit.loss = mean_over_samples(lambda logits, batch: self.loss(logits, batch))  # noqa: PLW0108
        return fit.training(BatchNormMode(fit, self.bn_mode))

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean symmetric cross-entropy of one batch."""
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(logits, batch.labels, reduction="none")
        reverse = -float(np.log(self.sce_clip)) * -(-losses).expm1()
        return (self.sce_a * losses + self.sce_b * reverse).mean()


class Tune(SemiSupervised):
    """Tune the network by MixMatch; before each epoch the samples of lowest loss are those with labels.

    A class of which no sample is among them is never guessed either, and stays lost: see `per_class`.
    Symmetric cross-entropy rises with cross-entropy, so that both part the samples alike.
    """

    name: ClassVar[str] = "dbd_tune"

    eps: float
    """Fraction of samples whose labels are read."""
    per_class: Annotated[bool, OnlyIf(per_class=True)]
    """Whether it is one of each observed class, not of all samples together."""

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        if not self.per_class:
            return flagged_lowest(losses, self.eps), losses
        labelled = np.zeros(len(losses), bool)
        for label in np.unique(fit.labels):
            own = fit.labels == label
            labelled[own] = flagged_lowest(losses[own], self.eps)
        return labelled, losses

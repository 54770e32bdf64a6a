"""ABL's trainings: isolation, recovery of clean accuracy, unlearning, and the joint form of the last two.

Source: "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (Li et al., NeurIPS 2021), section 3,
and the authors' released code for recovery and unlearning. Departures are listed where they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.knobs import Rate
from bdtune.training.supervised import Supervised
from bdtune.training.weighted import Weighted

if TYPE_CHECKING:
    import torch

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.batches import Batch
    from bdtune.training.fit import Fit, Part
    from bdtune.training.loop import Training


DESCENT = {"nesterov": True, "weight_decay": 1e-4}
"""Of all trainings of ABL's."""


class Isolate(Supervised, defaults={**DESCENT, "epochs": 20, "schedule": "constant", "augment": "none"}):
    """Train on everything, but push the loss back up whenever it falls below gamma.

    Local gradient ascent: sign(L - gamma) L is minimised, L being the cross-entropy. Flooding, |L - b| + b,
    is the same update with b = gamma, so that both have one result. The curve's loss is L itself. By default
    for the paper's 20 epochs, up to its turning epoch.
    """

    name: ClassVar[str] = "abl_isolate"
    classifier: ClassVar[bool] = False

    ascent: Annotated[Literal["lga", "flooding", "none"], OnlyIf(ascent="none")] = "lga"
    """lga: local gradient ascent; flooding: the same under its other name; none: plain descent."""
    lga_gamma: Annotated[float, OnlyIf(ascent=("lga", "flooding"))] = Field(0.5, ge=0)
    """The paper's gamma: loss below which descent turns into ascent (`gamma` alone is the schedule's)."""
    level: Annotated[Literal["batch", "sample"], OnlyIf(ascent=("lga", "flooding"))] = "batch"
    """Whose loss is compared with gamma: the batch's mean, as in all public code, or each sample's."""

    def parts(self, fit: Fit) -> list[Part]:
        from bdtune.training.micro_batches import mean_over_samples
        from bdtune.training.parts import LossTrace

        trace = LossTrace(fit)
        fit.loss = lambda logits, batch: self.objective(trace.losses(logits, batch))
        if self.ascent == "none" or self.level == "sample":  # else the batch's mean decides for all
            mean_over_samples(fit.loss)
        return [trace]

    def objective(self, losses: torch.Tensor) -> torch.Tensor:
        """Return what is minimised, of the cross-entropies [B] of one batch."""
        mean = losses.mean()
        if self.ascent == "none":
            return mean
        compared = losses.detach() if self.level == "sample" else mean.detach()
        signed = ((compared - self.lga_gamma).sign() * losses).mean()
        return signed + (mean - signed).detach()  # the value of the loss with the gradient of the signed one


class Recover(Supervised, defaults={**DESCENT, "milestones": (2 / 3,), "augment": "auto_cutout"}):
    """Go on with plain descent on the samples that were not isolated, to regain clean accuracy."""

    name: ClassVar[str] = "abl_recover"

    epochs: int = Field(60, ge=0)
    """Passes over the rest; 0 leaves the isolation model as it is."""


class Joint(Weighted, defaults={**DESCENT, "epochs": 80, "loss_cap": 10.0}):
    """Go on with descent on the rest and ascent on the isolated samples at once (global gradient ascent).

    Departures: `loss_cap` bounds the ascent by default, as nothing does in the paper.
    """

    name: ClassVar[str] = "abl_joint"


class Unlearn(
    Supervised, defaults={**DESCENT, "epochs": 5, "lr": 5e-4, "schedule": "constant", "augment": "none"}
):
    """Ascend on the isolated samples alone.

    Inputs: those of `Supervised` (subset: the isolated samples), and rest (subset artefact). The curve's
    loss is their cross-entropy; `rest_acc` is the accuracy on observed labels of some of the rest. Raises
    `Diverged` on a non-finite loss or weight.
    Batch norm is in training mode by default, as in the code: its running statistics follow the triggered
    batches, which is most of what lowers the ASR, and costs accuracy.
    Departures: two rules that need no trigger stand against a blow-up. Beyond `max_loss` a batch's gradient
    is zero: training goes on, and momentum and weight decay still move the weights. An epoch that breaks
    `max_drop` is taken back and ends the training. Every epoch trains, while the code's first one only tests.
    """

    name: ClassVar[str] = "abl_unlearn"
    version: ClassVar[int] = 2  # 1 counted `rest_acc` in the precision of the training
    few_samples: ClassVar[bool] = True

    bn_mode: Literal["train", "frozen_stats", "eval"] = "train"
    """Batch norm: train; frozen_stats: normalise by the batch, keep the running values; eval: use these."""
    max_loss: float | None = Field(50.0, gt=0)
    """Mean cross-entropy of a batch from which on it is not pushed any more; None: no limit."""
    max_drop: Rate | None = 0.2
    """Accuracy on the rest that may be lost; None: any."""
    watched: int = Field(1000, ge=1)
    """Samples of the rest, at most, on which that accuracy is counted."""

    def training(  # type: ignore[override]  # it has one input more
        self,
        ctx: Context,
        *,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        rest: Artefact,
        init: Artefact,
    ) -> Training | Artefact:
        from bdtune.defenses.abl.watch import Watch
        from bdtune.training.fit import Fit
        from bdtune.training.parts import BatchNormMode

        fit = Fit(self, ctx, data, subset, model, init)
        fit.loss = self.loss
        parts: list[Part] = [BatchNormMode(fit, self.bn_mode)]
        if fit.samples and self.max_drop is not None:
            parts.append(Watch(fit, rest, self.watched, self.max_drop))
        return fit.training(*parts)

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy of one batch, with the gradient of its negative."""
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(logits, batch.labels)
        pushed = loss if self.max_loss is None else loss.clamp(max=self.max_loss)
        return -pushed + (loss + pushed).detach()  # the value of the loss, the gradient of its negative

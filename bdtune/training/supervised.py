"""Supervised: a classifier trained by cross-entropy on a labelled subset.

Source: the recipe of He et al. (2016), section 4.2, which the field's CIFAR-10 experiments share: SGD with
momentum 0.9 and weight decay 5e-4, rate 0.1 divided by 10 at half and three quarters, 200 epochs, batch 128.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.knobs import Rate
from bdtune.training.choices import Augment, OptimizerName, Schedule
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    import torch

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network
    from bdtune.training.fit import Fit, Part
    from bdtune.training.loop import Training


class Supervised(TorchStage):
    """Train a classifier on `subset` (arrays ids, labels) of `data`, from scratch or from `init`'s weights.

    Inputs: data (ImageSet), subset (artefact), model (Model), optionally init (artefact with weights).
    Result: weights `model.<name>`; the curve has loss, acc and lr by epoch. An empty subset returns `init`
    unchanged, or raises `Diverged` without one. Raises `Diverged` on a non-finite loss or weight.
    Departures: a last batch of one image joins the one before it, since batch norm needs two.
    """

    name: ClassVar[str] = "supervised"
    classifier: ClassVar[bool] = True
    fused_by: ClassVar[tuple[str, ...]] = ("batch_size",)
    splits: ClassVar[bool] = True

    epochs: int = Field(200, ge=1)
    """Passes over the subset."""
    batch_size: int = Field(128, ge=2)
    """Images per step; the last batch may be smaller."""
    optimizer: OptimizerName = "sgd"
    """sgd: with momentum."""
    lr: float = Field(0.1, gt=0)
    """Learning rate at the start."""
    momentum: Annotated[float, OnlyIf(optimizer="sgd")] = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    nesterov: Annotated[bool, OnlyIf(optimizer="sgd")] = False
    """Whether sgd looks ahead along its momentum, as Nesterov's does."""
    weight_decay: float = Field(5e-4, ge=0)
    """On all weights; decoupled with adamw."""
    schedule: Schedule = "multistep"
    """multistep: times `gamma` at each milestone; cosine: to zero; constant."""
    milestones: Annotated[tuple[Rate, ...], OnlyIf(schedule="multistep")] = (0.5, 0.75)
    """Fractions of `epochs` at which multistep lowers the rate."""
    gamma: Annotated[float, OnlyIf(schedule="multistep")] = Field(0.1, gt=0, le=1)
    """Factor of each multistep."""
    augment: Augment = "auto"
    """auto: crop_flip, or crop where a mirror image may be of another class; crop: padded by an eighth of the
    side; cutout: a black square of 3/32 of the side; resized_crop_flip: torchvision's."""

    @property
    def looks_ahead(self) -> bool:
        """Whether the momentum is Nesterov's: with sgd, if it has any."""
        return self.nesterov and self.optimizer == "sgd" and self.momentum > 0

    def at(self, epochs: int) -> Supervised | None:
        """Return the same training with another length, where its rate depends on none.

        A classifier that a scheduler judges has none: it may be stopped before it passes anything.
        """
        fixed = self.schedule == "constant" and not self.classifier
        return self.model_copy(update={"epochs": epochs}) if fixed and epochs >= 1 else None

    def images_per_step(self, samples: int) -> int:
        return min(self.batch_size, samples)

    def moments(self) -> int:
        return int(self.momentum > 0) if self.optimizer == "sgd" else 2

    def rate(self, done: int) -> float:
        """Return the learning rate of the epoch after `done`."""
        from bdtune.training.loop import learning_rate

        return learning_rate(
            self.schedule, self.lr, done, self.epochs, milestones=self.milestones, gamma=self.gamma
        )

    def new_optimizer(self, network: Network) -> torch.optim.Optimizer:
        """Return the optimizer of the network's weights."""
        from bdtune.training.loop import make_optimizer

        rule: dict[str, Any] = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return make_optimizer(
            network.parameters(), self.optimizer, self.lr, nesterov=self.looks_ahead, **rule
        )

    def training(
        self, ctx: Context, *, data: ImageSet, subset: Artefact, model: Model, init: Artefact | None = None
    ) -> Training | Artefact:
        from bdtune.training.fit import Fit

        fit = Fit(self, ctx, data, subset, model, init)
        return fit.training(*self.parts(fit))

    def parts(self, fit: Fit) -> Sequence[Part]:
        """Return what the training does besides; may replace the fit's `loss` and `prepare`."""
        return ()

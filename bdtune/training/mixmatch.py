"""MixMatch: a classifier trained on labelled samples and on others whose labels are not read.

Source: "MixMatch: A Holistic Approach to Semi-Supervised Learning" (Berthelot et al., NeurIPS 2019), section
3, with the settings that DBD (Huang et al., ICLR 2022) and ASD (Gao et al., CVPR 2023) release.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from bdtune.knobs import Knobs
from bdtune.training.choices import Augment
from bdtune.training.supervised import Supervised
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training
    from bdtune.training.semi import SemiFit


class MixMatch(Knobs):
    """Settings of a semi-supervised training, all but its length."""

    iterations: int = Field(1024, ge=1)
    """Steps of an epoch; each takes one batch of labelled and one of unlabelled images."""
    batch_size: int = Field(64, ge=2)
    """Images of either kind per step; a smaller pool is one batch."""
    lr: float = Field(2e-3, gt=0)
    """Adam's rate, constant."""
    weight_decay: float = Field(0.0, ge=0)
    """Adam's weight decay."""
    augment: Augment = "auto"
    """What is done to images, labelled or not: see the settings of a supervised training."""
    views: int = Field(2, ge=1)
    """Augmented views of an unlabelled image, over which its label is guessed; all are trained on."""
    temperature: float = Field(0.5, gt=0)
    """Sharpens the guessed label; 1: as it is."""
    mixup_alpha: float = Field(0.75, ge=0)
    """Of the Beta distribution that says how much two images are mixed; 0: not at all."""
    lambda_u: float = Field(15.0, ge=0)
    """Weight of the unlabelled part of the loss, once it is fully ramped up."""
    ramp: float | None = Field(None, ge=0)
    """Epochs over which this weight rises from zero; null: as many as there are; 0: full from the start."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an average of the weights, which is then the result; 0: none."""
    score_views: Literal["clean", "augmented"] = "clean"
    """Images whose losses part the samples before each epoch: as they are, or augmented as in training."""

    def undefended(self, epochs: int) -> Supervised:
        """Return the training by the same recipe on labelled samples alone."""
        return self.to(Supervised, epochs=epochs, optimizer="adam", schedule="constant")


class SemiSupervised(MixMatch, TorchStage):
    """Base of semi-supervised trainings: `split` says before each epoch whose labels are read.

    Inputs: data (ImageSet), model (Model), optionally init (artefact with weights, and with the state of Adam
    where that training goes on) and clean (ImageSet, always labelled).
    Result: weights `model.<name>`; `pool.labelled` bool [epochs, N], whose labels were read in which epoch;
    `pool.scores` float32 [2, N], what `split` went by before the first and before the last epoch. With
    `goes_on` also the state of Adam, so that the next training is its continuation.
    The curve has loss, loss_x and loss_u (labelled and unlabelled part), lambda_u (its weight) and labelled
    (how many).
    Departures: all mixed images pass the network as one batch, and all unlabelled views as one, where the
    code of MixMatch has one pass for each batch, with labelled and unlabelled images interleaved; both give
    batch norm a mixture. A pool smaller than `batch_size` makes smaller batches, where the code has none.
    Raises `Diverged` when there is no labelled sample, or on a non-finite loss or weight.
    """

    classifier: ClassVar[bool] = True
    goes_on: ClassVar[bool] = False
    """Whether another training continues this one."""

    epochs: int = Field(190, ge=1)
    """Times that `iterations` steps are taken; samples are parted before each."""
    ramp: float = Field(190.0, ge=0)
    """Epochs over which the weight of the unlabelled part rises from zero; 0: full from the start."""

    @abstractmethod
    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        """Return bool [N], whose labels are read in this training's epoch after `done`, and scores [N].

        Those of low scores are read. `losses` float64 [N] are the cross-entropies of the observed labels,
        under what `fit` has learned.
        """

    def at(self, epochs: int) -> Self | None:
        """Return the same training with another length, unless a scheduler judges it."""
        return None if self.classifier else self.model_copy(update={"epochs": epochs})

    def training(
        self,
        ctx: Context,
        *,
        data: ImageSet,
        model: Model,
        init: Artefact | None = None,
        clean: ImageSet | None = None,
    ) -> Training:
        from bdtune.training.semi import SemiFit

        return SemiFit(self, ctx, data, model, init, clean).training()

    def images_per_step(self, samples: int) -> int:
        return (1 + self.views) * min(self.batch_size, samples)

    def passes_per_epoch(self) -> float:
        forward = 1 / 3  # of a pass there and back: the guesses, and the losses that part the samples
        return 1.0 + self.views * (1 + forward) + forward

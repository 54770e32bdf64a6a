"""ASD's three trainings, one for each rule that says which labels are read; each continues the one before.

Source: "Backdoor Defense via Adaptively Splitting Poisoned Dataset" (Gao et al., CVPR 2023), section 3. Knobs
without defaults are handed down from the defense, where their defaults and ranges are.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.defending.isolation import flagged_lowest, lowest, symmetric_cross_entropy
from bdtune.engine.key import derive_seed
from bdtune.knobs import Knobs
from bdtune.training.choices import OptimizerName
from bdtune.training.mixmatch import SemiSupervised

if TYPE_CHECKING:
    from bdtune.plugins.network import Network
    from bdtune.training.semi import SemiFit


class ClassAware(SemiSupervised):
    """Read the labels of each class's samples of lowest loss: `step` more after every `period` epochs."""

    name: ClassVar[str] = "asd_class_aware"
    classifier: ClassVar[bool] = False
    goes_on: ClassVar[bool] = True

    period: int
    """Epochs after which the pool grows."""
    step: int
    """Samples of each class by which it grows."""

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.zeros(len(losses), bool)
        for label in np.unique(fit.labels):
            own = np.flatnonzero(fit.labels == label)
            chosen[own[lowest(losses[own], self.step * (done // self.period))]] = True
        return chosen, losses


class LossGuided(SemiSupervised):
    """Read the labels of the samples of lowest loss, whatever their class."""

    name: ClassVar[str] = "asd_loss_guided"
    classifier: ClassVar[bool] = False
    goes_on: ClassVar[bool] = True

    eps: float
    """Fraction of samples whose labels are read."""

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        return flagged_lowest(losses, self.eps), losses


class Meta(Knobs):
    """Settings of the virtual model: a copy of the network that learns all labels."""

    passes: int = Field(1, ge=1)
    """Passes over all samples."""
    batch_size: int = Field(128, ge=2)
    """Images per step."""
    optimizer: OptimizerName = "adam"
    """sgd: with momentum 0.9."""
    lr: float = Field(0.015, gt=0)
    """Learning rate, constant."""
    layers: int | None = Field(5, ge=1)
    """Last parts of the network with weights that learn, the head included; null: all."""


class MetaGuided(SemiSupervised):
    """Read the labels of the samples whose loss falls least when a copy of the network learns all labels.

    Poison is learned fastest, so that its loss falls most; hard clean samples keep theirs. The loss is the
    symmetric cross-entropy; the copy is made anew before each epoch, and dropped.
    """

    name: ClassVar[str] = "asd_meta"

    eps: float
    """Fraction of samples whose labels are read."""
    meta: Meta
    """The copy's training."""
    sce_a: float
    """Weight of the cross-entropy."""
    sce_b: float
    """Weight of the reverse cross-entropy."""
    sce_clip: float
    """What stands for 0 in the logarithm of the one-hot label."""

    def split(self, fit: SemiFit, losses: np.ndarray, done: int) -> tuple[np.ndarray, np.ndarray]:
        taught = fit.losses(self.taught(fit, done), done)
        before, after = (
            symmetric_cross_entropy(each, self.sce_a, self.sce_b, self.sce_clip) for each in (losses, taught)
        )
        return flagged_lowest(before - after, self.eps), before - after

    def taught(self, fit: SemiFit, done: int) -> Network:
        """Return a copy of the network that has learned all observed labels for some passes.

        The batch norm of all its parts is in training mode, as in the authors' code.
        """
        from torch.nn.functional import cross_entropy

        from bdtune.training import loop, session
        from bdtune.training.augment import Augmentation
        from bdtune.training.batches import DeviceSet

        network, meta = copy.deepcopy(fit.judged).train(), self.meta
        network.requires_grad_(False)
        parts = [part for part in network.layers.values() if next(part.parameters(), None) is not None]
        learning = parts if meta.layers is None else parts[-meta.layers :]
        weights = [weight for part in learning for weight in part.requires_grad_(True).parameters()]
        optimizer = loop.make_optimizer(weights, meta.optimizer, meta.lr)
        see = Augmentation.of(self.augment, fit.data, session.dtype_of(fit.ctx.numerics))
        seed = derive_seed(fit.ctx.seed, "virtual", done)
        images = DeviceSet(fit.data, fit.device)
        for turn in range(meta.passes):
            draws = session.generator(seed, "augment", turn)
            for batch in images.shuffled(meta.batch_size, seed, turn):
                with session.autocast(fit.ctx.numerics):
                    logits = network(see(batch.images, draws))
                loop.descend(optimizer, cross_entropy(logits.float(), batch.labels))
        return network

    def passes_per_epoch(self) -> float:
        return super().passes_per_epoch() + self.meta.passes + 1 / 3

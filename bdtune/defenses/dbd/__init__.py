"""DBD: an encoder trained without labels, a head on top of it, and tuning that trusts half of the labels.

Source: "Backdoor Defense via Decoupling the Training Process" (Huang et al., ICLR 2022), section 4, and the
authors' released code, whose tuning starts from the 100th of 1,000 planned epochs of SimCLR.

Departures from the code: both views of an image are anchors of the contrastive loss, where the code has the
first; what is compared comes from a head without biases and batch norm (`simclr.head: normed` is the code's);
batch norm keeps its running statistics in the warm-up (`warmup.bn_mode: train` moves them, as in the code);
samples are scored as they are (`semi.score_views: augmented` as in the code); the tuning starts with fresh
moments of Adam; the weight of the unlabelled part follows the epochs of warm-up and tuning together, also
after an interruption; the last epoch is reported, where the code takes the best on test images; images are
padded with black, where the code mirrors them. Those of `bdtune.training.mixmatch` come on top.

Not of the paper: `per_class`, by which no class loses all its labels.

The baseline is trained by the recipe of the tuning, for the epochs of warm-up and tuning together. Epochs
without labels do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bdtune.defending import pools
from bdtune.defenses.dbd.stages import Tune, Warmup
from bdtune.effects import OnlyIf
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.mixmatch import MixMatch
from bdtune.training.simclr import SimCLR

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs
    from bdtune.training.supervised import Supervised


class Pretrain(
    SimCLR,
    defaults={
        "batch_size": 512,
        "optimizer": "sgd",
        "lr": 0.4,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "horizon": 1000,
        "smallest_crop": 0.2,
        "jitter": 0.5,
        "blur": 0.5,
    },
):
    """SimCLR with the settings of DBD; with those of GSSD both share the encoder."""


class Semi(MixMatch):
    """The semi-supervised tuning."""

    epochs: int = Field(190, ge=1)
    """Times that `iterations` steps are taken; samples are parted before each."""


class DBD(Defense):
    """Decoupling-based backdoor defense."""

    evidence: ClassVar[tuple[str, ...]] = ("classifier",)

    simclr: Pretrain = Pretrain()
    """Training of the encoder, without labels."""
    warmup: Warmup = Warmup()
    """Training of the head on all labels, the encoder being frozen."""
    eps: float = Field(0.5, gt=0, le=1)
    """Fraction of samples, those of lowest loss, whose labels are read in the tuning."""
    per_class: Annotated[bool, OnlyIf(per_class=True)] = False
    """Whether eps is a fraction of each observed class, which keeps all classes, and not of all samples."""
    semi: Semi = Semi()
    """Semi-supervised tuning of the whole network."""

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        data, model = given.fit, given.model
        subset = given.node(AllSamples(), data=given.labels)
        encoder = given.node(self.simclr.to(SimCLR), data=data, model=model)
        warmup = given.node(self.warmup, data=data, subset=subset, model=model, encoder=encoder)
        tuned = given.node(self._tuning(), data=data, model=model, init=warmup)
        return {"subset": subset, "simclr": encoder, "warmup": warmup, "classifier": tuned}

    @property
    def _epochs(self) -> int:
        return self.warmup.epochs + self.semi.epochs

    def _tuning(self) -> Tune:
        ramp = self.semi.epochs if self.semi.ramp is None else self.semi.ramp
        return self.semi.to(Tune, eps=self.eps, per_class=self.per_class, ramp=ramp)

    def baseline_training(self) -> Supervised:
        return self.semi.undefended(self._epochs)

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return pools.judged([artefacts["classifier"].arrays], truth)

    def suspected(self, artefacts: Mapping[str, Artefact]) -> np.ndarray:
        return pools.unlabelled(artefacts["classifier"].arrays)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        found = artefacts["classifier"].arrays
        shown = [
            pools.Scores(
                f"before the {word} epoch", found["pool.scores"][at], found["pool.labelled"][at], True
            )
            for at, word in ((0, "first"), (-1, "last"))
        ]
        return pools.figure(shown, [found], truth)

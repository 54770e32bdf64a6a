"""ASD: a pool of trusted samples grows from a few clean images, by three rules one after the other.

Source: "Backdoor Defense via Adaptively Splitting Poisoned Dataset" (Gao et al., CVPR 2023), section 3, and
the authors' released code.

Departures from the code: the clean images are the trial's (`clean: 10 per class`), taken out before anything
is poisoned, where the code picks them among the training samples by their poison flag; they are always
labelled, beside what a rule chooses. Samples are scored as they are (`semi.score_views: augmented` as in the
code); cross-entropy ranks the samples in the first two rules, as symmetric cross-entropy would; the virtual
model tunes the last five parts of any network, which of a ResNet-18 are layer3, layer4 and the head; the last
epoch is reported, where the code takes the best on test images; images are padded with black. Those of
`bdtune.training.mixmatch` come on top.

The baseline is trained by the same recipe, for the epochs of all three rules together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from bdtune.defending import pools
from bdtune.defending.clean_set import clean_images
from bdtune.defenses.asd import report
from bdtune.defenses.asd.stages import ClassAware, LossGuided, Meta, MetaGuided
from bdtune.knobs import Knobs
from bdtune.plugins.defense import Defense
from bdtune.training.mixmatch import MixMatch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Self

    import numpy as np
    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.errors import Problem
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs, Offer
    from bdtune.training.mixmatch import SemiSupervised
    from bdtune.training.supervised import Supervised


class Growth(Knobs):
    """The first rule: the same number of samples of each class, more from time to time."""

    epochs: int = Field(60, ge=0)
    """Epochs under this rule; 0: without it."""
    period: int = Field(5, ge=1)
    """Epochs after which the pool grows."""
    step: int = Field(10, ge=1)
    """Samples of each class by which it grows."""


class Lowest(Knobs):
    """The second rule: the samples of lowest loss, whatever their class."""

    epochs: int = Field(30, ge=0)
    """Epochs under this rule; 0: without it."""


class Virtual(Meta):
    """The third rule: the samples whose loss falls least when a copy of the network learns all labels."""

    epochs: int = Field(30, ge=0)
    """Epochs under this rule; 0: without it."""


class ASD(Defense):
    """Adaptively splitting backdoor defense."""

    evidence: ClassVar[tuple[str, ...]] = ("class_aware", "loss_guided", "classifier")

    class_aware: Growth = Growth()
    """First rule."""
    loss_guided: Lowest = Lowest()
    """Second rule."""
    meta: Virtual = Virtual()
    """Third rule."""
    eps: float = Field(0.5, gt=0, le=1)
    """Fraction of samples that the second and third rule trust."""
    sce_a: float = Field(0.1, ge=0)
    """Third rule: weight of the cross-entropy in the loss whose fall is compared."""
    sce_b: float = Field(1.0, ge=0)
    """Third rule: weight of the reverse cross-entropy."""
    sce_clip: float = Field(1e-4, gt=0, lt=1)
    """What stands for 0 in the logarithm of the one-hot label."""
    semi: MixMatch = MixMatch()
    """Semi-supervised training, under all three rules."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self._epochs:
            raise ValueError("one of class_aware.epochs, loss_guided.epochs, meta.epochs must be above 0")
        if self.sce_a == self.sce_b == 0:
            raise ValueError("sce_a or sce_b must be above 0, else no loss falls")
        return self

    def check_offer(self, offer: Offer) -> list[Problem]:
        expected = "expected images known to be clean, a few of each class, from which asd starts"
        return offer.lacks_clean(expected, "Set clean: 10 per class")

    @property
    def _epochs(self) -> int:
        return self.class_aware.epochs + self.loss_guided.epochs + self.meta.epochs

    def _rules(self) -> dict[str, SemiSupervised]:
        """Return the trainings, in the order in which they run; a rule of no epochs has none."""
        ramp = self._epochs if self.semi.ramp is None else self.semi.ramp
        lengths = {
            "class_aware": self.class_aware.epochs,
            "loss_guided": self.loss_guided.epochs,
            "meta": self.meta.epochs,
        }
        sce = {"sce_a": self.sce_a, "sce_b": self.sce_b, "sce_clip": self.sce_clip}
        kinds: dict[str, tuple[type[SemiSupervised], dict[str, Any]]] = {
            "class_aware": (ClassAware, {"period": self.class_aware.period, "step": self.class_aware.step}),
            "loss_guided": (LossGuided, {"eps": self.eps}),
            "meta": (MetaGuided, {"eps": self.eps, "meta": self.meta.to(Meta), **sce}),
        }
        return {
            name: self.semi.to(kind, epochs=lengths[name], ramp=ramp, **own)
            for name, (kind, own) in kinds.items()
            if lengths[name]
        }

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        clean = clean_images(given)
        chain: dict[str, Node] = {}
        before: dict[str, Node] = {}
        for name, stage in self._rules().items():
            chain[name] = given.node(stage, data=given.fit, model=given.model, clean=clean, **before)
            before = {"init": chain[name]}
        _, last = chain.popitem()
        return {**chain, "classifier": last}

    def baseline_training(self) -> Supervised:
        return self.semi.undefended(self._epochs)

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(self._named(artefacts), truth)

    def suspected(self, artefacts: Mapping[str, Artefact]) -> np.ndarray:
        return pools.unlabelled(artefacts["classifier"].arrays)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(self._named(artefacts), truth)

    def _named(self, artefacts: Mapping[str, Artefact]) -> dict[str, Artefact]:
        """Return the trainings by their rules, in the order in which they ran."""
        names = list(self._rules())
        return {name: artefacts["classifier" if name == names[-1] else name] for name in names}

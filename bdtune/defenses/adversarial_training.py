"""Adversarial training (PGD-AT) on all samples: fragile triggers lose their effect, patches do not.

Source: "Towards Deep Learning Models Resistant to Adversarial Attacks" (Madry et al., 2018), with settings of
"Adversarially Robust Anti-Backdoor Learning" (Zhao and Wressnegger, 2024), column "Adv. Train" of table 3.

Departures: batch, weight decay, random start and augmentation are not given there; they are those of
"Overfitting in adversarially robust deep learning" (Rice et al., 2020). The attack runs in evaluation mode,
and in bf16 where the numerics are.

What to expect: Blend, SSBA and WaNet fall to an ASR of 2 to 8 %; BadNets, Trojan, CLB and IAB stay near
100 %, as a patch is a robust feature; at low poisoning rates the ASR can be higher than without any defense.
Samples stay mislabelled. Robust accuracy falls again after the first drop of the rate (robust overfitting):
the last epoch may be worse than one before it (`checkpoint: best` takes the one that is best on a validation
part; grid over both, and they share the training), and weight decay decides much. With one step
(`train.pgd.steps: 1`) robust accuracy can collapse to 0 within an epoch, unseen by the training loss: measure
it with `evaluation.robust: pgd`. A large `train.pgd.eps` at a high rate may keep the network from learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.adversarial import AdversarialTraining
from bdtune.training.validation import BestEpoch, ValidationSplit, best_epoch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs
    from bdtune.training.supervised import Supervised


class AdversariallyTrained(Defense):
    """Train on adversarial images of all samples, with their observed labels."""

    evidence: ClassVar[tuple[str, ...]] = ("subset", "training")
    judged: ClassVar[tuple[str, ...]] = ("training", "classifier")  # at the end an epoch of it is chosen

    train: AdversarialTraining = AdversarialTraining()
    """The training; that of A-ABL is the same on fewer samples."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Fraction held out to measure robust accuracy after each epoch, under the attack of `train`."""
    checkpoint: Literal["last", "best"] = "last"
    """Which epoch's weights are kept: the last, or the one that is best on the validation part."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.checkpoint == "best" and self.validation == 0:
            raise ValueError("checkpoint best needs a validation part: Rice et al. hold out 0.02")
        return self

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        part = ValidationSplit(fraction=self.validation) if self.validation > 0 else AllSamples()
        subset = given.node(part, data=given.labels)
        training = given.node(self.train, data=given.fit, subset=subset, model=given.model)
        best = self.checkpoint == "best"
        classifier = given.node(BestEpoch(), classifier=training) if best else training
        return {"subset": subset, "training": training, "classifier": classifier}

    def baseline_training(self) -> Supervised:
        return self.train.natural()

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        """Return the mean losses on adversarial images in the last epoch: loss_clean, loss_poison (nats).

        With a validation part also best_epoch, from 1, and overfitting: the robust accuracy on it that was
        lost between that epoch and the last.
        """
        arrays = artefacts["training"].arrays
        last, poison = arrays["trace.losses"][-1], truth.is_poison[artefacts["subset"].arrays["ids"]]
        found = {
            "loss_clean": float(last[~poison].mean()) if not poison.all() else float("nan"),
            "loss_poison": float(last[poison].mean()) if poison.any() else float("nan"),
        }
        if self.validation > 0:
            curve = arrays["validation.robust_acc"]
            found |= {"best_epoch": best_epoch(arrays), "overfitting": float(curve.max() - curve[-1])}
        return found

    def suspected(self, artefacts: Mapping[str, Artefact]) -> np.ndarray:
        return np.empty(0, np.int64)  # what is left out is there to validate

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        """Draw the losses on adversarial images, clean and poisoned, while training and in its last epoch.

        With a validation part also the robust accuracy on it, epoch by epoch, and the best one.
        """
        from bdtune.defending.loss_pictures import draw_best, draw_histogram, draw_trace, panels

        arrays = artefacts["training"].arrays
        trace, curve = arrays["trace.losses"], arrays.get("validation.robust_acc")
        poison = truth.is_poison[artefacts["subset"].arrays["ids"]]
        picture, (left, right, *rest) = panels(2 if curve is None else 3)
        draw_trace(left, trace, poison)
        draw_histogram(right, trace[-1], poison, None, "")
        left.set_title("on adversarial images, while training", fontsize="medium")
        right.set_title("in the last epoch", fontsize="medium")
        if curve is not None:
            draw_best(rest[0], curve, "robust accuracy")
            rest[0].set_title("on the validation part", fontsize="medium")
        return picture

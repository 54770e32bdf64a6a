"""Adversarial training (PGD-AT) on all samples: fragile triggers lose their effect, patches do not.

Source: "Towards Deep Learning Models Resistant to Adversarial Attacks" (Madry et al., 2018), with settings of
"Adversarially Robust Anti-Backdoor Learning" (Zhao and Wressnegger, 2024), column "Adv. Train" of table 3.

Departures: batch, weight decay, random start and augmentation are not given there; they are those of
"Overfitting in adversarially robust deep learning" (Rice et al., 2020). The attack runs in evaluation mode,
and in bf16 where the numerics are. Rice et al. also report the epoch that is best on a validation part; here
only the last epoch is reported.

What to expect: Blend, SSBA and WaNet fall to an ASR of 2 to 8 %; BadNets, Trojan, CLB and IAB stay near
100 %, as a patch is a robust feature; at low poisoning rates the ASR can be higher than without any defense.
Samples stay mislabelled. Robust accuracy falls again after the first drop of the rate (robust overfitting):
the last epoch may be worse than one before it, and weight decay decides much. With one step
(`train.pgd.steps: 1`) robust accuracy can collapse to 0 within an epoch, unseen by the training loss: measure
it with `evaluation.robust: pgd`. A large `train.pgd.eps` at a high rate may keep the network from learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdtune.defenses._base import Defense
from bdtune.training.adversarial import RecordedAdversarialTraining
from bdtune.training.everything import AllSamples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.defenses._base import Given
    from bdtune.engine.stage import Artefact, Node
    from bdtune.training.data import Truth
    from bdtune.training.supervised import Supervised


class AdversariallyTrained(Defense):
    """Train on adversarial images of all samples, with their observed labels."""

    evidence: ClassVar[tuple[str, ...]] = ("subset", "classifier")

    train: RecordedAdversarialTraining = RecordedAdversarialTraining()
    """The training; that of A-ABL is the same on fewer samples."""

    def build(self, given: Given) -> dict[str, Node]:
        subset = given.node(AllSamples(), data=given.labels)
        classifier = given.node(self.train, data=given.fit, subset=subset, model=given.model)
        return {"subset": subset, "classifier": classifier}

    def reference(self) -> Supervised:
        return self.train.natural()

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        """Return the mean losses on adversarial images in the last epoch: loss_clean, loss_poison (nats)."""
        last = artefacts["classifier"].arrays["trace.losses"][-1]
        poison = truth.is_poison[artefacts["subset"].arrays["ids"]]
        return {
            "loss_clean": float(last[~poison].mean()) if not poison.all() else float("nan"),
            "loss_poison": float(last[poison].mean()) if poison.any() else float("nan"),
        }

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        """Draw the losses on adversarial images, clean and poisoned, while training and in its last epoch."""
        from bdtune.defenses._loss_pictures import draw_histogram, draw_trace, panels

        trace = artefacts["classifier"].arrays["trace.losses"]
        poison = truth.is_poison[artefacts["subset"].arrays["ids"]]
        picture, (left, right) = panels(2)
        draw_trace(left, trace, poison)
        draw_histogram(right, trace[-1], poison, None, "")
        left.set_title("on adversarial images, while training", fontsize="medium")
        right.set_title("in the last epoch", fontsize="medium")
        return picture

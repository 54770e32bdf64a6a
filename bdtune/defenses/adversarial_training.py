"""Adversarial training (PGD-AT) on all samples: fragile triggers lose their effect, patches do not.

Source: "Towards Deep Learning Models Resistant to Adversarial Attacks" (Madry et al., 2018), with settings of
"Adversarially Robust Anti-Backdoor Learning" (Zhao and Wressnegger, 2024), column "Adv. Train" of table 3.

Departures: batch, weight decay, random start and augmentation are not given there; they are those of
"Overfitting in adversarially robust deep learning" (Rice et al., 2020). The attack runs in evaluation mode.

What to expect: Blend, SSBA and WaNet fall to an ASR of 2 to 8 %; BadNets, Trojan, CLB and IAB stay near
100 %, as a patch is a robust feature; at low poisoning rates the ASR can be higher than without any defense.
Samples stay mislabelled. Robust accuracy falls again after the first drop of the rate (robust overfitting):
the last epoch is reported, never the best test epoch, and weight decay decides much. With one step
(`train.pgd.steps: 1`) robust accuracy can collapse to 0 within an epoch, unseen by the training loss: measure
it with `evaluation.robust: pgd`. A large `train.pgd.eps` at a high rate may keep the network from learning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.defenses._base import Defense
from bdtune.training.adversarial import AdversarialTraining
from bdtune.training.everything import AllSamples

if TYPE_CHECKING:
    from bdtune.defenses._base import Given
    from bdtune.engine.stage import Node
    from bdtune.training.supervised import Supervised


class AdversariallyTrained(Defense):
    """Train on adversarial images of all samples, with their observed labels."""

    train: AdversarialTraining = AdversarialTraining()
    """The training; that of A-ABL is the same on fewer samples."""

    def build(self, given: Given) -> dict[str, Node]:
        subset = given.node(AllSamples(), data=given.labels)
        classifier = given.node(self.train, data=given.fit, subset=subset, model=given.model)
        return {"subset": subset, "classifier": classifier}

    def reference(self) -> Supervised:
        return self.train.natural()

"""A-ABL: poison that withstands a perturbation is split off, what is left is trained on adversarially.

Source: "Adversarially Robust Anti-Backdoor Learning" (Zhao and Wressnegger, AISec 2024); no code is public.

Departures: none from what is written. Left open there, and decided here: the weights of the symmetric
cross-entropy; a clamp of the kept share to 10 to 90 %, which the exact 90.00 and 10.00 % of tables 1 and 5
show; that the perturbation follows the cross-entropy, starts at the image and changes images without
augmentation; batch, weight decay and augmentation of both trainings, and the attack's batch-norm mode; that
the last epoch alone is reported, not the one that a validation part would choose.
"Not flipped", as the abstract puts it, is taken as: still predicted as labelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from bdtune.defenses.aabl import report
from bdtune.defenses.aabl.losses import IFGSM, AdversarialLosses, AugmentedLosses, Naive
from bdtune.defenses.aabl.split import Rule, Score, Scores, Threshold, VulnerableSplit
from bdtune.knobs import Rate
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.adversarial import AdversarialTraining

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact, Stage
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs
    from bdtune.training.supervised import Supervised


class AABL(Defense):
    """Adversarially robust anti-backdoor learning."""

    evidence: ClassVar[tuple[str, ...]] = ("naive", "losses", "scores", "threshold", "split")
    pictured: ClassVar[tuple[str, ...]] = ("naive", "scores", "split", "classifier")

    naive: Naive = Naive()
    """Training of the classifier that the split looks at."""
    perturbation: Literal["ifgsm", "randaugment", "autoaugment", "augmix"] = "ifgsm"
    """What changes images before they are scored; the augmentations are the ablation of table 5."""
    ifgsm: IFGSM = IFGSM()
    """The perturbation before the split."""
    score: Score = "sce"
    """sce: symmetric cross-entropy; ce: cross-entropy. Both rank alike; Otsu parts them differently."""
    sce_a: float = Field(0.1, ge=0)
    """Weight of the cross-entropy."""
    sce_b: float = Field(1.0, ge=0)
    """Weight of the reverse cross-entropy."""
    sce_clip: float = Field(1e-4, gt=0, lt=1)
    """What stands for 0 in the logarithm of the one-hot label."""
    rule: Rule = "otsu"
    """Which scores are kept: above Otsu's threshold; the highest; of samples whose prediction flips."""
    bins: int | None = Field(256, ge=2)
    """Bins of Otsu's histogram; null: exact."""
    clamp: tuple[Rate, Rate] | None = (0.1, 0.9)
    """Least and greatest fraction kept by otsu and not_flipped; null: any."""
    keep: Rate = 0.5
    """Fraction kept by rule fixed."""
    final: Literal["adversarial", "natural"] = "adversarial"
    """natural: train on what is kept without an attack, the ablation of table 2."""
    train: AdversarialTraining = AdversarialTraining()
    """Training from scratch on what is kept."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.clamp is not None and self.clamp[0] > self.clamp[1]:
            raise ValueError(f"clamp must rise, got {self.clamp[0]:g} to {self.clamp[1]:g}")
        if self.score == "sce" and self.sce_a == self.sce_b == 0:
            raise ValueError("sce_a or sce_b must be above 0, else all scores are 0")
        return self

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        data, labels, model = given.fit, given.labels, given.model
        everything = given.node(AllSamples(), data=labels)
        naive = given.node(self.naive, data=data, subset=everything, model=model)
        losses = given.node(self._losses(), data=data, model=model, classifier=naive)
        score = Scores(score=self.score, a=self.sce_a, b=self.sce_b, clip=self.sce_clip)
        scores = given.node(score, losses=losses)
        chain = {"everything": everything, "naive": naive, "losses": losses, "scores": scores}
        found: dict[str, Node] = {}
        if self.rule == "otsu":
            found["threshold"] = given.node(Threshold(bins=self.bins), scores=scores)
        split = VulnerableSplit(rule=self.rule, clamp=self.clamp, keep=self.keep)
        kept = given.node(split, scores=scores, losses=losses, data=labels, **found)
        training = self.train if self.final == "adversarial" else self.train.natural()
        classifier = given.node(training, data=data, subset=kept, model=model)
        return {**chain, **found, "split": kept, "classifier": classifier}

    def _losses(self) -> Stage:
        if self.perturbation == "ifgsm":
            return AdversarialLosses(pgd=self.ifgsm)
        return AugmentedLosses(policy=self.perturbation)

    def baseline_training(self) -> Supervised:
        return self.train.natural()

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth, self.clamp)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)

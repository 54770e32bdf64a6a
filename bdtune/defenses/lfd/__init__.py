"""LfD: a low-capacity teacher learns the trigger first; a student unlearns what the teacher found easy.

Source: "Learning from Distinction: Mitigating Backdoors Using a Low-Capacity Model" (ACM MM 2024), section 4;
no code was released.

Departures: equations 5 and 6 print the teacher's loss where only the student's can be meant. Left open by the
paper and chosen here: 5 epochs and a constant rate for the teacher, batches of 128, m = floor(alpha N), the
64-channel stem. In `ascent_means` the two means are taken over the whole set, not within each batch. "No
gradient ascent" is three modes: `plain`, `drop` and `positive_only`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.defenses.lfd import report
from bdtune.defenses.lfd.stages import Mode, Threshold, Ties, Weigh
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.plugins.model import ModelKnob
from bdtune.training.embedding import Embedding
from bdtune.training.losses import SampleLosses
from bdtune.training.supervised import Supervised
from bdtune.training.weighted import Weighted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs
    from bdtune.training.fit import Fit, Part


ADAM = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0}


class Teacher(Supervised, defaults={**ADAM, "epochs": 5, "schedule": "constant", "augment": "none"}):
    """Train a small network for a few epochs on everything, without augmentation."""

    name: ClassVar[str] = "lfd_teacher"
    fused_by: ClassVar[tuple[str, ...]] = ("batch_size",)
    classifier: ClassVar[bool] = False

    model: ModelKnob = "resnet_s"  # type: ignore[assignment]
    """The network: resnet_s1, resnet_s, resnet_s2, vgg_s, lenet_s, mobilenetv2_s, or any other."""

    def parts(self, fit: Fit) -> list[Part]:
        from bdtune.training.micro_batches import mean_over_samples
        from bdtune.training.parts import LossTrace

        trace = LossTrace(fit)
        fit.loss = mean_over_samples(lambda logits, batch: trace.losses(logits, batch).mean())
        return [trace]


class Student(Weighted, defaults={**ADAM, "epochs": 80, "schedule": "cosine"}):
    """Train the classifier with the weights that the teacher's losses gave."""

    name: ClassVar[str] = "lfd_student"
    fused_by: ClassVar[tuple[str, ...]] = ("batch_size",)


class LfD(Defense):
    """Learning from Distinction."""

    evidence: ClassVar[tuple[str, ...]] = ("teacher", "losses", "threshold", "weights", "embedding")
    pictured: ClassVar[tuple[str, ...]] = ("teacher", "losses", "threshold", "embedding")

    teacher: Teacher = Teacher()
    """Training of the low-capacity model."""
    alpha: float = Field(0.15, ge=0, lt=1)
    """Fraction of samples, those with the lowest loss under the teacher, that are candidates."""
    ties: Ties = "all"
    """all: every loss up to the threshold, as the paper writes; strict: exactly floor(alpha N) of them."""
    beta: float = Field(1e-3, ge=0)
    """Strength of the ascent on candidates, in mode weighted."""
    mode: Mode = "weighted"
    """weighted: the method; ascent_means, ascent_sum: unweighted ascent; drop, positive_only, plain: none."""
    student: Student = Student()
    """Training of the classifier."""

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        data, small = given.fit, given.network(self.teacher.model)
        everything = given.node(AllSamples(), data=given.labels)
        teacher = given.node(self.teacher, data=data, subset=everything, model=small)
        losses = given.node(SampleLosses(), data=data, model=small, classifier=teacher)
        threshold = given.node(Threshold(alpha=self.alpha, ties=self.ties), losses=losses)
        weights = given.node(Weigh(mode=self.mode, beta=self.beta), losses=losses, threshold=threshold)
        if self.mode == "plain":  # the baseline, shared with it
            student = given.node(self.baseline_training(), data=data, subset=everything, model=given.model)
        else:
            student = given.node(
                self.student, data=data, subset=everything, model=given.model, weights=weights
            )
        seen = given.node(Embedding(), data=data, model=small, classifier=teacher)  # for the picture alone
        decided = {"losses": losses, "threshold": threshold, "weights": weights, "embedding": seen}
        return {"subset": everything, "teacher": teacher, **decided, "classifier": student}

    def baseline_training(self) -> Supervised:
        return self.student.to(Supervised)

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def suspected(self, artefacts: Mapping[str, Artefact]) -> np.ndarray:
        return np.flatnonzero(artefacts["threshold"].arrays["candidates"])

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)

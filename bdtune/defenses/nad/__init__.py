"""NAD: a student is tuned on clean images to attend to what a tuned teacher attends to.

Source: "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks" (Li et al., ICLR
2021), arXiv:2101.05930, section 3, and the authors' released code for what the paper leaves open.

Departures: groups are found by the size of their maps, the last layer of each size counting: in a
pre-activation network the last group is seen after the last ReLU, where the code takes the sum before it.
Maps of one position, whose attention is constant, are no group. The last epoch is kept, where the code picks
one by clean and backdoor accuracy. Of a distillation of another length than 20 epochs, and of a teacher of
another than 10, the rate falls at the same fraction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from bdtune.defending.clean_set import clean_images, clean_parts, lacks_clean_set
from bdtune.defenses.nad import report
from bdtune.defenses.nad.stages import Answers, Distil, Teacher
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.input_source import Source
    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.errors import Problem
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs, Offer


class NAD(Defense):
    """Neural attention distillation."""

    evidence: ClassVar[tuple[str, ...]] = ("undefended", "classifier", "answers")
    pictured: ClassVar[tuple[str, ...]] = ("classifier", "answers")

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "nad/cifar10": {"teacher": {"epochs": 10}, "distil": {"epochs": 20, "beta": (500.0, 1000.0, 1000.0)}},
        "backdoorbench/nad": {
            "teacher": {"batch_size": 256, "augment": "auto"},
            # the third activation of its network is a single position, without a gradient
            "distil": {
                "batch_size": 256, "augment": "auto", "epochs": 10, "milestones": (0.2,),
                "beta": (500.0, 1000.0),
            },
        },
        "backdoorbox/nad": {
            "teacher": {"lr": 0.01, "schedule": "constant"},
            "distil": {"lr": 0.01, "schedule": "constant", "beta": (500.0, 500.0, 500.0)},
        },
    }  # fmt: skip

    train: Supervised = Supervised()
    """Training of the classifier that is mended; without effect where the attacker hands over a model."""
    teacher: Teacher = Teacher()
    """Tuning of the teacher; 0 epochs: the undefended classifier teaches."""
    distil: Distil = Distil()
    """Tuning of the student, with its attention drawn to the teacher's."""

    def check_offer(self, offer: Offer) -> list[Problem]:
        return lacks_clean_set(offer, "nad")

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        undefended, model = given.undefended(self.train), given.model
        tuning = clean_parts(given, 0.0)["tuning"]
        inputs: dict[str, Node | Source] = {"data": clean_images(given), "subset": tuning}
        inputs |= {"model": model, "init": undefended}
        teacher = given.node(self.teacher, **inputs)
        student = given.node(self.distil, **inputs, teacher=teacher)
        three = {"undefended": undefended, "teacher": teacher, "student": student}
        answers = given.node(Answers(), data=given.fit, model=model, **three)
        before = {"subset": given.node(AllSamples(), data=given.labels), "undefended": undefended}
        return {**before, "tuning": tuning, "teacher": teacher, "answers": answers, "classifier": student}

    def baseline_training(self) -> Supervised:
        return self.train

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth, self.distil.beta)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)

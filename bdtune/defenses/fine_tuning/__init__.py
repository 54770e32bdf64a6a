"""Fine-tuning: the undefended classifier is trained on with clean images, plainly or against sharpness.

Source: BackdoorBench (Wu et al., 2022), defenses ft and ft-sam; "Enhancing Fine-Tuning Based Backdoor Defense
with Sharpness-Aware Minimization" (FT-SAM, Zhu et al., ICCV 2023); "Towards Stable Backdoor Purification
through Feature Shift Tuning" (FST, Min et al., NeurIPS 2023).

Departures: the clean images are taken out of the training set before it is poisoned (`clean: 0.05`), where
BackdoorBench's include the clean originals of poisoned ones. FT-SAM's cosine falls by the epoch and ends at
zero, as the paper has it; BackdoorBench's code lets it go on after each batch, so that it rises again (preset
`backdoorbench/ft_sam`). Super-fine-tuning is a schedule of the same training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdtune.defending.clean_set import clean_images, clean_parts, lacks_clean_set
from bdtune.defenses.fine_tuning import report
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.fine_tune import FineTune
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

SAM = {"mode": "ft_sam", "rho": 2.0}
SHORT = {"epochs": 10, "batch_size": 128, "weight_decay": 0.0}  # of FST's released code


class FineTuning(Defense):
    """Fine-tuning of all weights or of some, on a few clean images."""

    evidence: ClassVar[tuple[str, ...]] = ("undefended", "classifier")

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "backdoorbench/ft": {"tune": {"epochs": 100}},
        "backdoorbench/ft_sam": {"tune": {**SAM, "smoothing": 0.1, "schedule_unit": "batch", "horizon": 100}},
        "ft_sam/cifar10": {"tune": {**SAM, "smoothing": 0.1}},
        "ft_sam/gtsrb": {"tune": {**SAM, "rho": 8.0, "epochs": 50}},
        "ft_sam/tiny_imagenet": {"tune": {**SAM, "rho": 8.0}},
        "fst/fst": {"tune": {**SHORT, "mode": "fst", "alpha": 0.1}},
        "fst/ft_init": {"tune": {**SHORT, "mode": "ft_init"}},
        "fst/fe_tuning": {"tune": {**SHORT, "mode": "fe_tuning"}},
        "fst/lp": {"tune": {**SHORT, "mode": "lp"}},
        "super_ft/cifar10": {"tune": {"schedule": "triangular", "lr": 0.03}},
    }

    train: Supervised = Supervised()
    """Training of the classifier that is tuned; without effect where the attacker hands over a model."""
    tune: FineTune = FineTune()
    """The tuning."""
    validation: float = Field(0.0, ge=0, lt=1)
    """Fraction of the clean images that is not tuned on, only measured; nothing is chosen by it."""

    def check_offer(self, offer: Offer) -> list[Problem]:
        return lacks_clean_set(offer, "fine_tuning")

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        undefended = given.undefended(self.train)
        before = {"subset": given.node(AllSamples(), data=given.labels), "undefended": undefended}
        if self.tune.epochs == 0:
            return {**before, "classifier": undefended}
        parts = clean_parts(given, self.validation)
        inputs: dict[str, Node | Source] = {"data": clean_images(given), "model": given.model}
        inputs["init"] = undefended
        measured = {"validation": parts["validation"]} if "validation" in parts else {}
        tuned = given.node(self.tune, subset=parts["tuning"], **inputs, **measured)
        return {**before, **parts, "classifier": tuned}

    def baseline_training(self) -> Supervised:
        return self.train

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts)

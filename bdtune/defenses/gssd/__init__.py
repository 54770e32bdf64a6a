"""GSSD: self-supervised features and one density per class find poisoned classes and relabel their samples.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, BMVC
2024), arXiv:2409.01185, with the authors' released code for what the paper leaves open.

Departures: only observed labels are read, where the released retraining also removes the truly poisoned
samples; kept fractions are chosen per class by its verdict (`alpha_c`, `alpha_c_d`), where the release takes
one per run; batch norm is in training mode throughout retraining and fine-tuning, where a side effect of the
release freezes it in the first epochs. Retraining crops as the release does, out of padded images; the
random resized crop of the paper is `augment: resized_crop_flip`. Images of 224 pixels take 90 epochs: their
schedule, the release's, is in the search space paper/gssd_k3. When no class is detected all samples are kept
and nothing is tuned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from bdtune.defenses.gssd import report
from bdtune.defenses.gssd.discriminative import Discriminative
from bdtune.defenses.gssd.stages import ClassTests, CleanSplit, Relabel, Tests
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.defense import Defense
from bdtune.training.features import Features
from bdtune.training.flows import Density, Flows
from bdtune.training.simclr import SimCLR
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs


class FineTune(Supervised, defaults={"epochs": 2, "lr": 1e-4, "schedule": "constant"}):
    """Train the retrained classifier a little more, on the relabelled samples alone (appendix E)."""

    name: ClassVar[str] = "finetune"
    fused_by: ClassVar[tuple[str, ...]] = ("batch_size",)
    few_samples: ClassVar[bool] = True


class GSSD(Tests, Defense):
    """Generative self-supervised backdoor defense."""

    model_config: ClassVar = {"serialize_by_alias": True}

    evidence: ClassVar[tuple[str, ...]] = ("features", "density", "class_tests", "split", "relabel")
    pictured: ClassVar[tuple[str, ...]] = ("density", "class_tests")
    judged: ClassVar[tuple[str, ...]] = ("retrain", "classifier")  # the tuning goes on with the same descent

    simclr: SimCLR = SimCLR()
    """Training of the encoder, without labels."""
    features: Features = Features()
    """Extraction of its features."""
    density: Literal["flows", "discriminative"] = "flows"
    """discriminative: a classifier of features in place of the flows (appendix J); needs `oracle_target`."""
    flows: Flows = Flows()
    """Training of one flow per class."""
    discriminative: Discriminative = Discriminative()
    """Training of the classifier of features."""
    oracle_target: int | None = Field(None, ge=0)
    """Ablation only: the attacker's class, taken as non-disruptively poisoned without any test."""
    alpha_c: Rate = 0.3
    """Fraction kept as clean of a non-disruptively poisoned class."""
    alpha_c_d: Rate = 0.15
    """Fraction kept as clean of a disruptively poisoned class."""
    alpha_p: Rate = 0.15
    """Fraction relabelled of a non-disruptively poisoned class."""
    retrain: Supervised = Supervised()
    """Training of the classifier on what is kept."""
    finetune: FineTune = FineTune()
    """Tuning of the classifier on what is relabelled."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.alpha_c + self.alpha_p > 1:
            raise ValueError(
                f"alpha_c + alpha_p must be at most 1, got {self.alpha_c:g} + {self.alpha_p:g}; lower one of "
                "them, as a sample of a detected class cannot be both kept and relabelled"
            )
        if self.density == "discriminative" and self.oracle_target is None:
            raise ValueError(
                "density: discriminative needs oracle_target, as the class tests work with flows only; "
                "set it to the attack's target"
            )
        return self

    def check(self, num_classes: int) -> list[Problem]:
        if self.oracle_target is None or self.oracle_target < num_classes:
            return []
        expected = f"expected a class from 0 to {num_classes - 1}"
        return [Problem(path="oracle_target", expected=expected, got=str(self.oracle_target))]

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        data, labels, model = given.fit, given.labels, given.model
        encoder = given.node(self.simclr, data=data, model=model)
        features = given.node(self.features, data=data, model=model, encoder=encoder)
        chain = {"simclr": encoder, "features": features}
        if self.density == "flows":
            chain["flows"] = given.node(self.flows, features=features, data=labels)
            density = given.node(Density(), features=features, flows=chain["flows"], data=labels)
        else:
            density = given.node(self.discriminative, features=features, data=labels)
        tests = given.node(self.to(ClassTests, given=self.oracle_target), density=density)
        alphas = {"alpha_c_nd": self.alpha_c, "alpha_c_d": self.alpha_c_d}
        kept = given.node(CleanSplit(**alphas), density=density, class_tests=tests)
        relabel = given.node(Relabel(alpha_p=self.alpha_p), density=density, class_tests=tests)
        retrain = given.node(self.retrain, data=data, subset=kept, model=model)
        tuned = given.node(self.finetune, data=data, subset=relabel, model=model, init=retrain)
        decided = {"density": density, "class_tests": tests, "split": kept, "relabel": relabel}
        return {**chain, **decided, "retrain": retrain, "classifier": tuned}

    def baseline_training(self) -> Supervised:
        return self.retrain

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth, self.bins, self.trim, self.lambda_)

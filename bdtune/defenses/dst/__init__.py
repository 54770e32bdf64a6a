"""D-ST: samples whose features react to transformations are split off; a classifier learns from the rest.

Source: "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (Chen et al., NeurIPS
2022), with the authors' released code for L_intra and all settings; its split before an adversarial training
as in "Adversarially Robust Anti-Backdoor Learning" (Zhao and Wressnegger, 2024), table 4.

Departures: FCT is drawn once for each sample and kept by id, where the code takes thresholds of one pass and
flags of another. Samples are split by rank with ties by id (`ties: all` is the code's rule, which may take
far more than `alpha_c`), and features that have collapsed end the trial. Centres of L_intra are those of the
classes in a batch. Positives of the extractor are two trusted samples, as the paper writes; the code's are
`extractor.positives: any_label`. A batch without poison has no second term. The last epoch's head is the
result, where the code also keeps the one that is best on test images. Augmentation of the head is the
project's. D-BR, the paper's other defense, which mends a trained model, is `final: repair`.

The baseline has the recipe `undefended` and the extractor's epochs, in form adversarial those of `train`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from bdtune.defenses.dst import report
from bdtune.defenses.dst.consistency import Consistency
from bdtune.defenses.dst.split import CLEAN, POISON, UNCERTAIN, Part, Split, Ties
from bdtune.defenses.dst.training import Extractor, Head, Repair, Sensitive
from bdtune.effects import OnlyIf
from bdtune.knobs import Rate
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.adversarial import AdversarialTraining
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs

    Parts = Callable[..., Node]
    """Makes the node of the samples of some flags."""

KEPT = {"clean": (CLEAN,), "clean_uncertain": (CLEAN, UNCERTAIN)}
"""Flags of what form adversarial trains on."""


class DST(Defense):
    """Distinguishment and secure training."""

    evidence: ClassVar[tuple[str, ...]] = ("fct", "split")

    features: Sensitive = Sensitive()
    """Training of the network whose features are compared."""
    fct: Consistency = Consistency()
    """The comparison of each image's features with those of its transformed self."""
    alpha_c: float = Field(0.2, gt=0, le=1)
    """Fraction of samples taken as clean: those whose features move least."""
    alpha_p: Rate = 0.05
    """Fraction of samples taken as poison: those whose features move most."""
    ties: Ties = "strict"
    """strict: exactly floor(alpha N) samples, ties by id; all: every FCT up to the threshold, as the code."""
    final: Literal["secure", "adversarial", "repair"] = "secure"
    """secure: extractor and head (D-ST); adversarial: training on what is kept, A-ABL's ablation; repair: the
    undefended model is mended (D-BR)."""
    extractor: Annotated[Extractor, OnlyIf(final="secure")] = Extractor()
    """Training of the features, in form secure."""
    head: Annotated[Head, OnlyIf(final="secure")] = Head()
    """Training of the last layer, in form secure."""
    kept: Annotated[Literal["clean", "clean_uncertain"], OnlyIf(final="adversarial")] = "clean"
    """Samples that form adversarial trains on."""
    train: Annotated[AdversarialTraining, OnlyIf(final="adversarial")] = AdversarialTraining()
    """Training from scratch on what is kept, in form adversarial."""
    repair: Annotated[Repair, OnlyIf(final="repair")] = Repair()
    """Unlearning and relearning of the undefended model, in form repair."""
    undefended: Annotated[Supervised, OnlyIf(final=("secure", "repair"))] = Supervised()
    """Training of the model that form repair mends, and of the baseline; of form secure's with the
    extractor's epochs."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.alpha_c + self.alpha_p > 1:
            raise ValueError(
                f"alpha_c + alpha_p must be at most 1, got {self.alpha_c:g} + {self.alpha_p:g}; lower one of "
                "them, as a sample cannot be taken as clean and as poison"
            )
        return self

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        data, labels, model = given.fit, given.labels, given.model
        everything = given.node(AllSamples(), data=labels)
        features = given.node(self.features, data=data, subset=everything, model=model)
        fct = given.node(self.fct, data=data, model=model, features=features)
        split = given.node(Split(alpha_c=self.alpha_c, alpha_p=self.alpha_p, ties=self.ties), fct=fct)
        chain = {"subset": everything, "features": features, "fct": fct, "split": split}

        def part(*flags: int) -> Node:
            return given.node(Part(flags=flags), split=split, data=labels)

        return chain | {
            "secure": self._secure,
            "adversarial": self._adversarial,
            "repair": self._repair,
        }[self.final](given, part)

    def _secure(self, given: DefenseInputs, part: Parts) -> dict[str, Node]:
        data, model, clean, poison = given.fit, given.model, part(CLEAN), part(POISON)
        trusted = {"trusted": clean} if self.extractor.needs_trusted else {}
        extractor = given.node(self.extractor, data=data, model=model, **trusted)
        sure = part(CLEAN, POISON)
        head = given.node(self.head, data=data, subset=sure, model=model, init=extractor, poison=poison)
        own = {"clean": clean} if trusted else {}
        return {**own, "extractor": extractor, "poison": poison, "sure": sure, "classifier": head}

    def _adversarial(self, given: DefenseInputs, part: Parts) -> dict[str, Node]:
        kept = part(*KEPT[self.kept])
        classifier = given.node(self.train, data=given.fit, subset=kept, model=given.model)
        return {"kept": kept, "classifier": classifier}

    def _repair(self, given: DefenseInputs, part: Parts) -> dict[str, Node]:
        data, model, clean, poison = given.fit, given.model, part(CLEAN), part(POISON)
        undefended = given.undefended(self.undefended)
        mended = given.node(self.repair, data=data, subset=clean, model=model, init=undefended, poison=poison)
        return {"clean": clean, "poison": poison, "undefended": undefended, "classifier": mended}

    def baseline_training(self) -> Supervised:
        if self.final == "adversarial":
            return self.train.natural()
        if self.final == "repair":
            return self.undefended
        return self.undefended.model_copy(update={"epochs": self.extractor.epochs})

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth, KEPT[self.kept] if self.final == "adversarial" else None)

    def suspected(self, artefacts: Mapping[str, Artefact]) -> np.ndarray:
        return np.flatnonzero(artefacts["split"].arrays["flags"] == POISON)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)

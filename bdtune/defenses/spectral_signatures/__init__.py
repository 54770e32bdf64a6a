"""Spectral Signatures: rows far along the top singular direction of their class's features are removed.

Source: "Spectral Signatures in Backdoor Attacks" (Tran, Li, Madry, NeurIPS 2018), algorithm 1, with the
authors' released code, BackdoorBench and backdoor-toolbox for the other budgets.

Departures: the number of poisoned rows of a class is assumed (`eps`), not known, and all classes are
inspected; what the paper knows is `oracle_target` and `oracle_rate`. Counts are exact and ties go by id,
where the released code takes a percentile. At most `cap` of a class is removed. Features are taken without
augmentation, where BackdoorBench augments; like it its preset flattens the last feature maps.

What to expect: the budget decides. Where poison is half of its class or more, as with 10 % dirty labels on
ten classes, both halves lie equally far from their mean, so that clean rows are flagged as often. A share of
every class is lost, which costs accuracy: `control: random` measures this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdtune.defending.filtering import Control, Kept, RandomRemoval
from bdtune.defenses.spectral_signatures import report
from bdtune.defenses.spectral_signatures.stages import Rule, SpectralRemoval, SpectralScores
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.penultimate import Penultimate, SeenLayer
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs

RELEASED = {"centred": False}
"""As the authors' code scores, and all public code after it."""
BENCH = {"epochs": 100, "batch_size": 256, "lr": 0.01, "schedule": "cosine"}
"""BackdoorBench's training on what is kept."""


class SpectralSignatures(SeenLayer, Defense):
    """Filtering by spectral signatures, then training on what is kept."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "madry/spectral": {**RELEASED, "rule": "share"},  # which sets oracle_target too
        "backdoorbench/spectral": {
            **RELEASED, "rule": "share", "layer": 1, "flatten": True, "retrain": BENCH,
        },
        "toolbox/spectral": {**RELEASED},  # which sets oracle_rate
    }  # fmt: skip
    evidence: ClassVar[tuple[str, ...]] = ("scores", "removal")

    train: Supervised = Supervised()
    """Training of the classifier whose features are read, unless the attacker hands one over."""
    centred: bool = True
    """Whether features are centred before they are projected; the released code leaves them as they are."""
    directions: int = Field(1, ge=1)
    """Top singular directions whose squared projections are summed."""
    rule: Rule = "assumed"
    """assumed: factor times eps of each class; share: a fixed share; mad: above so many deviations."""
    eps: Rate = 0.05
    """Rule assumed: fraction of each class that is taken to be poison."""
    factor: float = Field(1.5, gt=0)
    """Rows that are removed for each that is taken to be poison."""
    share: Rate = 0.15
    """Rule share: fraction of each class that is removed."""
    mad: float = Field(3.0, gt=0)
    """Rule mad: scaled median absolute deviations above the median from which on a row is removed."""
    cap: float = Field(0.5, ge=0, lt=1)
    """Largest fraction of a class that is removed."""
    fewest: int = Field(10, ge=1)
    """Rows that a class must have to be inspected."""
    oracle_rate: Rate | None = None
    """Fraction of all rows that is poison, if known: factor times as many are removed of each class, whatever
    the rule."""
    oracle_target: int | None = Field(None, ge=0)
    """The attacker's class, if known: no other is inspected."""
    control: Control = "none"
    """random: as many rows of each class are removed, but at random."""
    retrain: Supervised = Supervised()
    """Training of the classifier on what is kept."""

    def check(self, num_classes: int) -> list[Problem]:
        if self.oracle_target is None or self.oracle_target < num_classes:
            return []
        expected = f"expected a class from 0 to {num_classes - 1}"
        return [Problem("oracle_target", expected, got=str(self.oracle_target))]

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        labels = given.labels
        undefended = given.undefended(self.train)
        seen = given.node(self.to(Penultimate), data=given.fit, model=given.model, classifier=undefended)
        score = SpectralScores(centred=self.centred, directions=self.directions, fewest=self.fewest)
        scores = given.node(score, penultimate=seen, data=labels)
        removal = given.node(self._removal(), scores=scores, data=labels)
        chain = {
            "subset": given.node(AllSamples(), data=labels),
            "undefended": undefended,
            "penultimate": seen,
            "scores": scores,
        }
        if self.control == "random":
            chain["suspects"] = removal
            removal = given.node(RandomRemoval(), suspects=removal, data=labels)
        kept = given.node(Kept(), removal=removal, data=labels)
        retrained = given.node(self.retrain, data=given.fit, subset=kept, model=given.model)
        return {**chain, "removal": removal, "kept": kept, "classifier": retrained}

    def _removal(self) -> SpectralRemoval:
        levels = {"assumed": self.factor * self.eps, "share": self.share, "mad": self.mad}
        return SpectralRemoval(
            rule=self.rule,
            level=levels[self.rule],
            rate=None if self.oracle_rate is None else self.factor * self.oracle_rate,
            target=self.oracle_target,
            cap=self.cap,
            fewest=self.fewest,
        )

    def baseline_training(self) -> Supervised:
        return self.retrain

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth)

"""STRIP: an input whose class stays the same whatever is blended over it is rejected.

Source: "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks" (Gao et al., ACSAC 2019), with the
authors' released notebook for how images are blended.

Departures: overlays, calibration and test images are disjoint, where the notebook scores training images;
both are clean images of the trial's clean set. Sums are clipped to [0, 1] unless `clip` is false, as the
notebook has it. A normal fit whose boundary lies at or below zero entropy rejects nothing: the empirical
quantile takes its place then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdtune.defending.blending import Blend, Boundary, Drawn, Entropies, Overlays, Scores, Threshold
from bdtune.defending.clean_set import clean_images
from bdtune.defenses.strip import report
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.input_detector import DETECTION, InputDetector
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


class STRIP(Blend, Boundary, Drawn, InputDetector):
    """Strong intentional perturbation: rejects triggered inputs, and leaves the classifier as it is."""

    evidence: ClassVar[tuple[str, ...]] = (DETECTION, "threshold")
    pictured: ClassVar[tuple[str, ...]] = (DETECTION, "entropies")

    train: Supervised = Supervised()
    """Training of the classifier that is guarded, if the attacker hands over none."""
    scored: int = Field(2000, ge=2)
    """Calibration images, clean and triggered test images that are scored, at most."""

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        clean = clean_images(given)
        subset = given.node(AllSamples(), data=given.labels)
        undefended = given.undefended(self.train)
        overlays = given.node(Overlays(count=self.computed), data=clean)
        entropies = given.node(
            self._entropies,
            data=clean,
            model=given.model,
            classifier=undefended,
            overlays=overlays,
            calibration=overlays,
        )
        scores = given.node(Scores(overlays=self.overlays), entropies=entropies)
        threshold = given.node(self.to(Threshold), scores=scores)
        decided = {"overlays": overlays, "entropies": entropies, "scores": scores, "threshold": threshold}
        return {"subset": subset, **decided, "classifier": undefended}

    def scores(self, given: DefenseInputs, chain: Mapping[str, Node], images: Source) -> Node:
        entropies = given.node(
            self._entropies,
            data=images,
            model=given.model,
            classifier=chain["classifier"],
            overlays=chain["overlays"],
        )
        return given.node(Scores(overlays=self.overlays), entropies=entropies)

    def check_offer(self, offer: Offer) -> list[Problem]:
        return super().check_offer(offer) or self.lacks_overlays(offer)

    @property
    def _entropies(self) -> Entropies:
        return self.to(Entropies)

    def baseline_training(self) -> Supervised:
        return self.train

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return {**super().diagnose(artefacts, truth), **report.diagnose(artefacts)}

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, self.overlays)

"""STRIP as a filter: training rows whose class stays the same whatever is blended over them are removed.

Source: "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks" (Gao et al., ACSAC 2019) for the
score; backdoor-toolbox and BackdoorBench (Wu et al., 2022) for its use on training rows, with their rate of
10 % and the quantile of the clean set.

Departures: every row sees the same overlays, where toolboxes pair images of two batches. Overlays and the
images that set the threshold are disjoint parts of the clean set. Images are summed as pixels, clipped to
[0, 1]; the preset sums normalised inputs, as toolboxes do, with weights of 1.

What to expect: the classifier was trained on the rows that it judges here, so that clean ones have lower
entropies than the clean set, and more of them than `frr` are removed: `fpr` beside `frr` says how many. A
trigger that is lost below a blended image (a faint one, a warp) is not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from bdtune.defending.blending import (
    Blend,
    Boundary,
    Drawn,
    Entropies,
    LowEntropy,
    Overlays,
    Scores,
    Threshold,
)
from bdtune.defending.clean_set import clean_images
from bdtune.defending.filtering import Control, Kept, RandomRemoval
from bdtune.defenses.strip_filter import report
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


class STRIPFilter(Blend, Boundary, Drawn, Defense, defaults={"frr": 0.1, "boundary": "quantile"}):
    """Filtering by the entropies of blended training rows, then training on what is kept."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "toolbox/strip_filter": {"space": "normalised"},
        "backdoorbench/strip_filter": {
            "space": "normalised",
            "retrain": {"epochs": 100, "batch_size": 256, "lr": 0.01, "schedule": "cosine"},
        },
    }
    evidence: ClassVar[tuple[str, ...]] = ("calibration", "scores", "threshold", "removal")
    pictured: ClassVar[tuple[str, ...]] = ("entropies", "scores", "removal")

    train: Supervised = Supervised()
    """Training of the classifier that judges the rows, unless the attacker hands one over."""
    scored: int = Field(2000, ge=2)
    """Calibration images that set the threshold, at most; of the training set every row is scored."""
    control: Control = "none"
    """random: as many rows of each class are removed, but at random."""
    retrain: Supervised = Supervised()
    """Training of the classifier on what is kept."""

    def check_offer(self, offer: Offer) -> list[Problem]:
        expected = "expected images known to be clean, which strip_filter blends over others"
        missing = offer.lacks_clean(expected, "Set clean: 0.05, a share of the training set")
        return missing or self.lacks_overlays(offer)

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        chain = self._scored(given)
        calibration, scores = chain["calibration"], chain["scores"]
        chain["threshold"] = limit = given.node(self.to(Threshold), scores=calibration)
        removal = given.node(LowEntropy(), scores=scores, threshold=limit)
        if self.control == "random":
            chain["suspects"] = removal
            removal = given.node(RandomRemoval(), suspects=removal, data=given.labels)
        chain |= {"removal": removal, "kept": given.node(Kept(), removal=removal, data=given.labels)}
        last = given.node(self.retrain, data=given.fit, subset=chain["kept"], model=given.model)
        return {**chain, "classifier": last}

    def _scored(self, given: DefenseInputs) -> dict[str, Node]:
        """Return the nodes up to the scores of the clean set and of all training rows."""
        clean, undefended = clean_images(given), given.undefended(self.train)
        overlays = given.node(Overlays(count=self.computed), data=clean)
        seen: dict[str, Node | Source] = {"model": given.model, "classifier": undefended}
        seen["overlays"] = overlays
        entropies = given.node(self.to(Entropies), data=clean, **seen, calibration=overlays)
        rows = given.node(self.to(Entropies, scored=None), data=given.fit, **seen)
        scores = Scores(overlays=self.overlays)
        return {
            "subset": given.node(AllSamples(), data=given.labels),
            "undefended": undefended,
            "overlays": overlays,
            "entropies": entropies,
            "rows": rows,
            "calibration": given.node(scores, entropies=entropies),
            "scores": given.node(scores, entropies=rows),
        }

    def baseline_training(self) -> Supervised:
        return self.retrain

    def diagnose(self, artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
        return report.diagnose(artefacts, truth)

    def figure(self, artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
        return report.figure(artefacts, truth, self.overlays)

"""What STRIP found among training rows, and a picture of it. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.entropy_pictures import draw_spread
from bdtune.defending.filter_report import draw_roc, draw_scores, filter_metrics
from bdtune.defending.loss_pictures import panels
from bdtune.metrics import mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return how well the filter works, and the entropies behind it, in bits.

    What `filter_metrics` says; entropy_calibration: of the clean set; entropy_clean, entropy_poison: of
    training rows; boundary, unless it is infinite; fell_back: 1 where the normal fit gave no boundary.
    """
    scores = artefacts["scores"].arrays["scores"]
    boundary = -float(artefacts["threshold"].arrays["threshold"][0])
    return {
        **filter_metrics(artefacts["removal"].arrays["flagged"], scores, truth),
        "entropy_calibration": mean(-artefacts["calibration"].arrays["scores"]),
        "entropy_clean": mean(-scores[~truth.is_poison]),
        "entropy_poison": mean(-scores[truth.is_poison]),
        "boundary": boundary if np.isfinite(boundary) else np.nan,
        "fell_back": float(artefacts["threshold"].info["fell_back"]),
    }


def figure(artefacts: Mapping[str, Artefact], truth: Truth, overlays: int) -> Figure:
    """Draw the rows' scores by role, their ROC curve, and how clean entropies settle with overlays."""
    picture, (left, middle, right) = panels(3)
    scores = artefacts["scores"].arrays["scores"]
    draw_scores(left, scores, truth, "negative mean entropy in bits")
    draw_roc(middle, scores, artefacts["removal"].arrays["flagged"], truth)
    draw_spread(right, artefacts["entropies"].arrays["entropies"], overlays)
    titles = ("training rows", "their ROC curve", "spread of clean entropies")
    for ax, title in zip((left, middle, right), titles, strict=True):
        ax.set_title(title, fontsize="medium")
    return picture

"""What Spectral Signatures found, and a picture of it. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.filter_report import draw_roc, draw_scores, filter_metrics
from bdtune.defending.isolation import count_of
from bdtune.defending.loss_pictures import PARTS, dress, panels
from bdtune.defenses.spectral_signatures.stages import flag_highest
from bdtune.metrics import mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Shares of every class whose removal is judged, whatever the budget in use."""


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return how well the filter works, and what the spectra show.

    What `filter_metrics` says; poison_left_at_0.05 and so on: poisoned rows left after removing this share of
    every class; ratio_target, ratio_others: first singular value over the second, of the target class and the
    largest of other classes; shift_target: distance between the means of poison and the rest along the target
    class's first direction; top_target: share of that class's scores in its highest hundredth; skipped:
    classes with too few rows.
    """
    arrays = artefacts["scores"].arrays
    scores, singular = arrays["scores"], arrays["singular"]
    flagged = artefacts["removal"].arrays["flagged"]
    left = {f"poison_left_at_{share:g}": poison_left(scores, truth, share) for share in SHARES}
    present = np.unique(truth.observed)
    found = {**filter_metrics(flagged, scores, truth), **left}
    found["skipped"] = float(np.count_nonzero(singular[present, 0] == 0))
    if truth.target is None:
        return found
    ratio = singular[:, 0] / np.maximum(singular[:, 1], np.finfo(float).tiny)
    rows, poison = truth.observed == truth.target, truth.is_poison
    first = arrays["projections"][:, 0]
    own = np.sort(scores[rows])[::-1]
    return found | {
        "ratio_target": float(ratio[truth.target]),
        "ratio_others": float(np.delete(ratio, truth.target).max(initial=0.0)),
        "shift_target": abs(mean(first[rows & poison]) - mean(first[rows & ~poison])),
        "top_target": float(own[: -(-len(own) // 100)].sum() / own.sum()) if own.any() else np.nan,
    }


def poison_left(scores: np.ndarray, truth: Truth, share: float) -> float:
    """Return how many poisoned rows are left when this share of every class is removed."""
    classes = np.unique(truth.observed).tolist()
    flagged = flag_highest(scores, truth.observed, classes, lambda own: count_of(share, len(own)))
    return float(np.count_nonzero(truth.is_poison & ~flagged))


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw the scores by role, their ROC curve, and how much poison each budget would leave."""
    picture, (left, middle, right) = panels(3)
    scores, flagged = artefacts["scores"].arrays["scores"], artefacts["removal"].arrays["flagged"]
    draw_scores(left, scores, truth, "score", log=True)
    draw_roc(middle, scores, flagged, truth)
    draw_budgets(right, scores, flagged, truth)
    titles = ("squared length along the top direction", "its ROC curve", "what a budget leaves")
    for ax, title in zip((left, middle, right), titles, strict=True):
        ax.set_title(title, fontsize="medium")
    return picture


def draw_budgets(ax: Axes, scores: np.ndarray, flagged: np.ndarray, truth: Truth) -> None:
    """Draw the share of poison that is left against the share of every class that is removed."""
    number = max(1, int(np.count_nonzero(truth.is_poison)))
    shares = (0.0, *SHARES)
    left = [poison_left(scores, truth, share) / number for share in shares]
    ax.plot(shares, left, color="black", marker=".", label="highest scores")
    ax.plot(shares, 1 - np.array(shares), ":", color="grey", label="at random")
    now = np.count_nonzero(truth.is_poison & ~flagged) / number
    ax.plot(mean(flagged), now, "o", color=PARTS[1][1], label="flagged")
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("share of every class that is removed", fontsize="small")
    ax.set_ylabel("share of poison that is left", fontsize="small")
    dress(ax)

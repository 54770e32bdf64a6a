"""How well a filter of training rows finds poison, and pictures of it. It reads the truth, after the fact.

Positive are the rows that the attacker added (role poison). Cover rows, which carry the trigger and their own
label, count among the others, and are reported apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune import detection
from bdtune.defending.loss_pictures import BINS, FLOOR, PARTS, dress
from bdtune.metrics import mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bdtune.plugins.data import Truth

COVER = 2
COVER_COLOUR = "#CC79A7"


def filter_metrics(flagged: np.ndarray, scores: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return how flags bool [N] and scores float [N] (larger: more suspicious) agree with the truth.

    tpr, fpr, precision, f1, balanced_accuracy: of the flags; auroc, ap, eer, partial_auroc and
    tpr_at_fpr_...: of the scores; poison_share: share of all rows, without which ap says nothing;
    tpr_relabelled: tpr over poison whose label was changed; fpr_target: fpr within the target class, and
    auroc_target: auroc there, which does not reward telling that class from others; cover_flagged: share of
    cover rows; removed: share of all rows; poison_left, clean_removed, target_removed: rows; undefined:
    scores that are not finite. A value that is not defined is nan.
    """
    poison = truth.is_poison
    relabelled = poison & (truth.labels != truth.observed)
    target = truth.observed == truth.target  # all False where there is no single target
    return {
        **detection.rates(flagged, poison),
        **detection.ranking(scores, poison),
        "poison_share": mean(poison),
        "tpr_relabelled": mean(flagged[relabelled]),
        "fpr_target": mean(flagged[target & ~poison]),
        "auroc_target": detection.auroc(scores[target], poison[target]),
        "cover_flagged": mean(flagged[truth.role == COVER]),
        "removed": mean(flagged),
        "poison_left": float(np.count_nonzero(poison & ~flagged)),
        "clean_removed": float(np.count_nonzero(flagged & ~poison)),
        "target_removed": float(np.count_nonzero(flagged & target)) if truth.target is not None else np.nan,
        "undefined": float(np.count_nonzero(~np.isfinite(scores))),
    }


def draw_scores(ax: Axes, scores: np.ndarray, truth: Truth, name: str, *, log: bool = False) -> None:
    """Draw which share of each role's rows has which score; scores that are not finite are left out.

    Shares, as poison may be a few rows among thousands. `log` draws the logarithm to base 10 of scores that
    are not negative.
    """
    finite = np.isfinite(scores)
    values = np.log10(np.maximum(scores[finite], FLOOR)) if log else scores[finite]
    role, poison = truth.role[finite], truth.is_poison[finite]
    parts = [(*PARTS[0], ~poison & (role != COVER)), ("cover", COVER_COLOUR, role == COVER)]
    parts.append((*PARTS[1], poison))
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    for word, colour, rows in parts:
        if rows.any():
            share = np.histogram(values[rows], edges)[0] / np.count_nonzero(rows)
            ax.stairs(share, edges, fill=True, color=colour, alpha=0.6, label=word)
    ax.set_xlabel(f"log10 of the {name}" if log else name, fontsize="small")
    ax.set_ylabel("share of the role's rows", fontsize="small")
    dress(ax)


def draw_roc(ax: Axes, scores: np.ndarray, flagged: np.ndarray, truth: Truth) -> None:
    """Draw the ROC curve over all rows and within the target class, and where the filter's flags lie."""
    target = truth.observed == truth.target
    for word, style, rows in (("all rows", "-", np.ones_like(target)), ("target class", "--", target)):
        poison = truth.is_poison[rows]
        if poison.any() and not poison.all():
            curve = detection.roc(scores[rows], poison)
            area = detection.auroc(scores[rows], poison)
            ax.plot(*curve, style, color="black", linewidth=1, label=f"{word}: {area:.3f}")
    found = detection.rates(flagged, truth.is_poison)
    if np.isfinite(found["tpr"]) and np.isfinite(found["fpr"]):
        ax.plot(found["fpr"], found["tpr"], "o", color=PARTS[1][1], label="flagged")
    ax.plot([0, 1], [0, 1], ":", color="grey", linewidth=0.8, label="chance")
    ax.set_xlabel("false positive rate", fontsize="small")
    ax.set_ylabel("true positive rate", fontsize="small")
    dress(ax)

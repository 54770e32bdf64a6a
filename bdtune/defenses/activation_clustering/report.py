"""What Activation Clustering found, and a picture of it. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.filter_report import draw_roc, draw_scores, filter_metrics
from bdtune.defending.loss_pictures import PARTS, draw_map, dress, panels
from bdtune.metrics import mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

MOST_POINTS = 1000
"""Rows of a class that are drawn."""


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return how well the filter works, and how classes fall into parts.

    What `filter_metrics` says, with each row's nearness to the smallest cluster, times its class's
    silhouette, as its score; detected: classes of which rows are flagged; agreement: share of rows predicted
    as labelled; skipped: classes with too few rows; not_converged: classes. Of the target class:
    detected_target (0 or 1), false_alarms (other classes), size_target (share of its smallest cluster),
    silhouette_target, size_others (least), silhouette_others (largest), poison_small, poison_large: share of
    poison in its smallest and its largest cluster. With reclassification: exre_target, rows of the target's
    smallest cluster predicted as it for each predicted as the next class; source_right: share of flagged
    poison whose class is found.
    """
    clustered, groups = artefacts["clustered"].arrays, artefacts["groups"].arrays
    flagged = artefacts["removal"].arrays["flagged"]
    done: np.ndarray = clustered["sizes"].sum(1) > 0
    present = np.bincount(groups["groups"], minlength=len(done)) > 0
    detected = np.unique(groups["groups"][flagged])
    found = {
        **filter_metrics(flagged, clustered["scores"], truth),
        "detected": float(len(detected)),
        "agreement": float(groups["agreement"][0]),
        "skipped": float(np.count_nonzero(present & ~done)),
        "not_converged": float(np.count_nonzero(~artefacts["reduced"].arrays["converged"])),
    }
    found |= _of_exre(artefacts["removal"].arrays, truth)
    if truth.target is None:
        return found
    hit = float(truth.target in detected)
    found |= {"detected_target": hit, "false_alarms": len(detected) - hit}
    return found | _of_target(clustered, groups["groups"], done, truth, truth.target)


def _of_exre(removal: Mapping[str, np.ndarray], truth: Truth) -> dict[str, float]:
    if "ratio" not in removal:
        return {}
    found = {}
    if truth.target is not None:
        ratios = removal["ratio"][truth.target]
        asked = ratios[np.isfinite(ratios)]
        found["exre_target"] = float(asked[-1]) if len(asked) else np.nan
    rows = removal["flagged"] & truth.is_poison
    return found | {"source_right": mean(removal["source"][rows] == truth.labels[rows])}


def _of_target(
    clustered: Mapping[str, np.ndarray], groups: np.ndarray, done: np.ndarray, truth: Truth, target: int
) -> dict[str, float]:
    if not done[target]:
        return {}
    share, silhouette = smallest_shares(clustered["sizes"]), clustered["silhouette"]
    others = done & (np.arange(len(done)) != target)
    rows, last = groups == target, np.flatnonzero(clustered["sizes"][target])[-1]
    return {
        "size_target": float(share[target]),
        "silhouette_target": float(silhouette[target]),
        "size_others": float(share[others].min(initial=1.0)),
        "silhouette_others": float(silhouette[others].max(initial=-1.0)),
        "poison_small": mean(truth.is_poison[rows & (clustered["clusters"] == last)]),
        "poison_large": mean(truth.is_poison[rows & (clustered["clusters"] == 0)]),
    }


def smallest_shares(sizes: np.ndarray) -> np.ndarray:
    """Return the share float64 [K] of each class's smallest cluster that has rows; 1 where there is none."""
    least = np.where(sizes > 0, sizes, sizes.max(initial=1)).min(1)
    whole = sizes.sum(1)
    return np.divide(least, whole, out=np.ones(len(sizes)), where=whole > 0)


def figure(artefacts: Mapping[str, Artefact], truth: Truth, size: float, silhouette: float) -> Figure:
    """Draw a class's first two components, all classes' sizes and silhouettes, scores and their ROC curve.

    The class is the target; without one, that of the smallest cluster. Dashed lines are the two thresholds.
    """
    picture, axes = panels(4)
    clustered = artefacts["clustered"].arrays
    shares, groups = smallest_shares(clustered["sizes"]), artefacts["groups"].arrays["groups"]
    shown = int(shares.argmin()) if truth.target is None else truth.target
    ids = np.flatnonzero(groups == shown)
    ids = ids[np.linspace(0, len(ids) - 1, min(len(ids), MOST_POINTS)).astype(int)] if len(ids) else ids
    points = artefacts["reduced"].arrays["reduced"][ids]
    draw_map(axes[0], points[:, [0, min(1, points.shape[1] - 1)]], truth.is_poison[ids])
    draw_classes(axes[1], shares, clustered["silhouette"], shown, (size, silhouette))
    draw_scores(axes[2], clustered["scores"], truth, "nearness to the smallest cluster x silhouette")
    draw_roc(axes[3], clustered["scores"], artefacts["removal"].arrays["flagged"], truth)
    titles = (f"class {shown}, its first two components", "all classes", "scores", "their ROC curve")
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize="medium")
    return picture


def draw_classes(
    ax: Axes, shares: np.ndarray, silhouettes: np.ndarray, shown: int, lines: tuple[float, float]
) -> None:
    """Draw each class as a number at the share of its smallest cluster and its silhouette."""
    for label, (share, value) in enumerate(zip(shares.tolist(), silhouettes.tolist(), strict=True)):
        colour = PARTS[1][1] if label == shown else PARTS[0][1]
        ax.text(
            share, value, str(label), color=colour, fontsize="small", ha="center", va="center", clip_on=True
        )
    ax.axvline(lines[0], color="black", linestyle="--", linewidth=0.8, label=f"size {lines[0]:g}")
    ax.axhline(lines[1], color="black", linestyle=":", linewidth=0.8, label=f"silhouette {lines[1]:g}")
    ax.set_xlim(0, 0.55)
    ax.set_ylim(min(0.0, float(silhouettes.min()) - 0.05), max(0.5, float(silhouettes.max()) + 0.05))
    ax.set_xlabel("share of the smallest cluster", fontsize="small")
    ax.set_ylabel("silhouette", fontsize="small")
    dress(ax)

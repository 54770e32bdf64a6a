"""Which classes Neural Cleanse flagged, and a picture of their triggers. The truth is read after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defenses.neural_cleanse.repair import stamp
from bdtune.metrics import mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import TriggerExamples, Truth

SHOWN = 10
COVERED = 0.5
"""Value of the mask from which on a pixel belongs to the trigger."""
TARGET, FLAGGED, OTHER = "#D55E00", "#0072B2", "#9aa0a6"


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return the verdicts, the norms behind them, and whether the attacker's class was hit.

    index: the largest of all classes; chance: share of clean models with as large a one, if norms are normal;
    threshold; flagged: classes; detected: 1 if there is one, the verdict on the model; detected_target: 0 or
    1; false_alarms: other classes that were flagged; iou_target, distance_target: see `compared`;
    index_target, norm_target, reversed_target (success of its trigger on clean images); norm_median,
    norm_deviation; unreached: classes whose trigger never worked; undefined: classes of infinite index, which
    are in no other number; epochs: mean over classes; reversed_before, reversed_after: success of the flagged
    triggers on clean images before and after the repair.
    """
    found, tested = artefacts["inversion"].arrays, artefacts["outliers"]
    index, flagged = tested.arrays["index"], tested.arrays["flagged"]
    finite = index[np.isfinite(index)]
    numbers = {
        "index": float(finite.max()) if len(finite) else np.nan,
        "chance": tested.info.get("chance", np.nan),
        "threshold": tested.info["threshold"],
        "flagged": float(np.count_nonzero(flagged)),
        "detected": float(flagged.any()),
        "norm_median": tested.info.get("median", np.nan),
        "norm_deviation": tested.info.get("deviation", np.nan),
        "unreached": float(np.count_nonzero(~found["reached"])),
        "undefined": float(tested.info["undefined"]),
        "epochs": mean(found["epochs"]),
        "reversed_before": mean(found["success"][flagged]),
    }
    if "left" in artefacts:
        numbers["reversed_after"] = mean(artefacts["left"].arrays["success"])
    if truth.target is not None:
        own = index[truth.target]
        numbers |= {
            "detected_target": float(flagged[truth.target]),
            "false_alarms": float(np.count_nonzero(np.delete(flagged, truth.target))),
            "index_target": float(own) if np.isfinite(own) else np.nan,
            "norm_target": float(tested.arrays["norm"][truth.target]),
            "reversed_target": float(found["success"][truth.target]),
        }
        if truth.examples is not None:
            trigger = found["mask"][truth.target], found["pattern"][truth.target]
            numbers |= compared(*trigger, truth.examples)
    return numbers


def compared(mask: np.ndarray, pattern: np.ndarray, examples: TriggerExamples) -> dict[str, float]:
    """Return how far the target class's trigger, mask [H, W] and pattern [H, W, C], is the attack's.

    iou_target: pixels that both cover, of those that one covers; the attack covers what it changes in any
    image, the mask the pixels that it takes at least half of. distance_target: mean difference of pixels in
    [0, 1] between images with one trigger and with the other. nan where the attack changes no image.
    """
    attacked = (examples.clean != examples.stamped).any((0, 3))
    if not attacked.any():
        return {}
    inverted = mask >= COVERED
    apart = stamp(examples.clean, mask, pattern).astype(np.float64) - examples.stamped
    return {
        "iou_target": float(np.count_nonzero(attacked & inverted) / np.count_nonzero(attacked | inverted)),
        "distance_target": float(np.abs(apart).mean() / 255),
    }


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw the triggers of the ten smallest masks, and every class's index beside the threshold."""
    from matplotlib.figure import Figure

    found, tested = artefacts["inversion"].arrays, artefacts["outliers"]
    norms = tested.arrays["norm"]
    order = np.argsort(norms, kind="stable")[:SHOWN]
    columns = len(order)
    picture = Figure(figsize=(max(6.0, 1.15 * columns), 5.4), layout="constrained")
    above, below = picture.subfigures(2, 1, height_ratios=(2.6, 2.4), squeeze=False)[:, 0]
    axes = above.subplots(2, columns, squeeze=False)
    for (top, bottom), label in zip(axes.T, order.tolist(), strict=True):
        _draw_trigger(top, bottom, found["mask"][label], found["pattern"][label])
        colour = _colour(label, tested.arrays["flagged"], truth)
        top.set_title(f"class {label}\nnorm {norms[label]:.3g}", fontsize="x-small", color=colour)
    axes[0, 0].set_ylabel("mask", fontsize="x-small")
    axes[1, 0].set_ylabel("mask x pattern", fontsize="x-small")
    _draw_indices(below.subplots(), tested, truth)
    return picture


def _draw_trigger(top: Axes, bottom: Axes, mask: np.ndarray, pattern: np.ndarray) -> None:
    top.imshow(mask, cmap="gray", vmin=0, vmax=1)
    bottom.imshow(mask[..., None] * pattern)
    for ax in (top, bottom):
        ax.set_xticks([])
        ax.set_yticks([])


def _colour(label: int, flagged: np.ndarray, truth: Truth) -> str:
    if label == truth.target:
        return TARGET
    return FLAGGED if flagged[label] else "black"


def _draw_indices(ax: Axes, tested: Artefact, truth: Truth) -> None:
    """Draw a bar for each class; one without an index has none, an infinite one ends at the axis."""
    index, flagged = tested.arrays["index"], tested.arrays["flagged"]
    finite = index[np.isfinite(index)]
    highest = max(tested.info["threshold"], finite.max(initial=0.0)) * 1.15
    heights = np.clip(np.nan_to_num(index, nan=0.0), min(0.0, finite.min(initial=0.0)), highest)
    labels = np.arange(len(index))
    is_target = labels == (-1 if truth.target is None else truth.target)
    parts = (
        ("the attacker's class", is_target, TARGET),
        ("flagged", flagged & ~is_target, FLAGGED),
        ("other classes", ~flagged & ~is_target, OTHER),
    )
    for name, rows, colour in parts:
        if rows.any():
            ax.bar(labels[rows], heights[rows], color=colour, label=name)
    ax.axhline(tested.info["threshold"], color="black", linestyle="--", linewidth=0.8, label="threshold")
    ax.set_xlabel("class", fontsize="small")
    ax.set_ylabel("anomaly index", fontsize="small")
    if len(labels) <= 20:
        ax.set_xticks(labels)
    ax.tick_params(labelsize="x-small")
    ax.legend(fontsize="x-small", loc="upper right")

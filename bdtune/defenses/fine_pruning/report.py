"""What pruning cost and what it removed, by poisoned training images. The truth is read after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.loss_pictures import PARTS, dress, panels
from bdtune.defending.poisoned_rows import success
from bdtune.metrics import defined, mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return how much was pruned, what it cost on clean images, and what it removed, before the tuning.

    pruned, channels; dead: channels whose activation on clean images is 0; acc_before, acc_pruned: on the
    validation part; train_asr_before, train_asr_pruned: share of poisoned training images, those that were
    relabelled, that are classified as labelled; activation_clean, activation_poison: mean over the pruned
    channels; raised: share of the pruned channels among as many that poisoned images raise most.
    """
    mask, activation = artefacts["mask"].arrays["mask"], artefacts["ranking"].arrays["activation"]
    count, curve, shown = int(mask.sum()), artefacts["curve"].arrays, artefacts["shown"]
    asr, seen = _success(shown, truth), shown.arrays["activation"]
    poison = truth.is_poison[shown.arrays["ids"]]
    found = {
        "pruned": count,
        "channels": len(mask),
        "dead": int(np.count_nonzero(activation == 0)),
        "acc_before": curve["acc"][0],
        "acc_pruned": curve["acc"][_point(curve["pruned"], count)],
        "train_asr_before": asr[0],
        "train_asr_pruned": asr[_point(shown.arrays["pruned"], count)],
    }
    if count and poison.any() and not poison.all():
        clean_mean, poison_mean = seen[~poison].mean(0), seen[poison].mean(0)
        most = np.argsort(clean_mean - poison_mean, kind="stable")[:count]
        found |= {
            "activation_clean": float(clean_mean[mask].mean()),
            "activation_poison": float(poison_mean[mask].mean()),
            "raised": mean(mask[most]),
        }
    return defined(found)


def _success(shown: Artefact, truth: Truth) -> np.ndarray:
    return success(shown.arrays["ids"], shown.arrays["predictions"], truth)


def _point(pruned: np.ndarray, count: int) -> int:
    """Return the last point of a curve with at most so many pruned channels."""
    return int(np.searchsorted(pruned, count, "right")) - 1


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw accuracy on clean images and success on poisoned training images against pruned channels.

    Beside it how active each channel is, in the order of pruning, in clean and in poisoned training images.
    """
    picture, (left, right) = panels(2)
    mask, order = artefacts["mask"].arrays["mask"], artefacts["ranking"].arrays["order"]
    _draw_curves(left, artefacts, truth)
    shown, rank = artefacts["shown"].arrays, np.arange(1, len(order) + 1)
    poison = truth.is_poison[shown["ids"]]
    for (name, colour), rows in zip(PARTS, (~poison, poison), strict=True):
        if rows.any():
            right.plot(rank, shown["activation"][rows].mean(0)[order], ".", color=colour, label=name)
    right.set_xlabel("channel, in the order of pruning", fontsize="small")
    right.set_ylabel("mean activation in training images", fontsize="small")
    right.set_title("how active channels are", fontsize="medium")
    for ax in (left, right):
        label = f"{int(mask.sum())} of {len(mask)} pruned"
        ax.axvline(int(mask.sum()) + 0.5, color="black", linestyle="--", linewidth=0.8, label=label)
        dress(ax)
    return picture


def _draw_curves(ax: Axes, artefacts: Mapping[str, Artefact], truth: Truth) -> None:
    curve, shown = artefacts["curve"].arrays, artefacts["shown"]
    (_, blue), (_, red) = PARTS
    ax.plot(curve["pruned"], curve["acc"], color=blue, label="accuracy, clean validation part")
    asr = _success(shown, truth)
    if not np.isnan(asr).any():
        ax.plot(shown.arrays["pruned"], asr, color=red, label="poisoned training images as labelled")
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("pruned channels", fontsize="small")
    ax.set_title("while pruning, before the tuning", fontsize="medium")

"""What semi-supervised defenses read the labels of, judged by the truth, and a picture of it.

Shape letters: E epochs, N samples. `labelled` is bool [E, N], the samples whose labels were read; `losses`
float [2, N], those before the first and before the last epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.isolation import isolation
from bdtune.defending.loss_pictures import PARTS, SHARE, draw_histogram, dress, number_epochs, panels
from bdtune.metrics import auroc, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.plugins.data import Truth


def judged(labelled: np.ndarray, losses: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return how much is labelled, how much of it is poison, and how far losses tell poison apart.

    labelled: share of all samples, in the last epoch; labelled_poison, _first, _most: share of poison in what
    is labelled, in the last epoch, in the first, and in the worst; poison_labelled: share of all poison that
    is labelled; isolation_precision, isolation_recall: of poison in what is not labelled; smallest_class:
    least labelled share of an observed class; changed: share of samples whose side changed before the last
    epoch; auroc, auroc_first: chance that a poisoned sample has a higher loss than another; loss_clean,
    loss_poison: means in nats.
    """
    poison, last = truth.is_poison, labelled[-1]
    by_epoch = poison_by_epoch(labelled, poison)
    return {
        "labelled": mean(last),
        "labelled_poison": by_epoch[-1],
        "labelled_poison_first": by_epoch[0],
        "labelled_poison_most": np.max(by_epoch[np.isfinite(by_epoch)], initial=0.0),
        "poison_labelled": mean(last[poison]),
        **isolation(~last, poison),
        "smallest_class": min(mean(last[truth.observed == c]) for c in np.unique(truth.observed)),
        "changed": mean(last != labelled[-2]) if len(labelled) > 1 else np.nan,
        "auroc": auroc(losses[1], poison),
        "auroc_first": auroc(losses[0], poison),
        "loss_clean": mean(losses[1][~poison]),
        "loss_poison": mean(losses[1][poison]),
    }


def poison_by_epoch(labelled: np.ndarray, poison: np.ndarray) -> np.ndarray:
    """Return the share of poison in what is labelled float64 [E]; nan where nothing is."""
    return np.array([mean(poison[row]) for row in labelled])


def figure(labelled: np.ndarray, losses: np.ndarray, truth: Truth) -> Figure:
    """Draw the losses that part the samples, first and last, and what was labelled by epoch."""
    picture, (first, last, right) = panels(3)
    for ax, row, title in ((first, 0, "before the first epoch"), (last, -1, "before the last epoch")):
        limit = losses[row][labelled[row]].max(initial=-np.inf)
        line = float(limit) if np.isfinite(limit) else None
        draw_histogram(ax, losses[row], truth.is_poison, line, "labelled up to")
        ax.set_title(title, fontsize="medium")
    _draw_epochs(right, labelled, truth.is_poison)
    right.set_title("what is labelled", fontsize="medium")
    return picture


def _draw_epochs(ax: Axes, labelled: np.ndarray, poison: np.ndarray) -> None:
    epochs = np.arange(1, len(labelled) + 1)
    found = poison_by_epoch(labelled, poison)
    ax.plot(epochs, found, color=PARTS[1][1], marker=".", label="poison in what is labelled")
    ax.axhline(mean(poison), color="black", linestyle="--", linewidth=0.8, label="poison in all samples")
    ax.plot(epochs, labelled.mean(1), color=SHARE, linestyle=":", label="labelled, of all samples")
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share", fontsize="small")
    number_epochs(ax)
    dress(ax)

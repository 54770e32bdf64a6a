"""What semi-supervised defenses read the labels of, judged by the truth, and a picture of it.

Shape letters: E epochs, N samples. A training has the arrays `pool.labelled` bool [E, N], the samples whose
labels were read, and `pool.scores` float [2, N], by which they were parted before the first and before the
last epoch; those of low scores are labelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bdtune.defending.isolation import isolation
from bdtune.defending.loss_pictures import (
    PARTS,
    SHARE,
    draw_histogram,
    draw_stacked,
    dress,
    number_epochs,
    panels,
)
from bdtune.metrics import auroc, mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.plugins.data import Truth

    Training = Mapping[str, np.ndarray]

LABELLED, SCORES = "pool.labelled", "pool.scores"
LEAST = "#009E73"


def unlabelled(training: Training) -> np.ndarray:
    """Return the positions int64 of the rows whose labels are not read in the last epoch."""
    return np.flatnonzero(~training[LABELLED][-1])


def judged(trainings: Sequence[Training], truth: Truth) -> dict[str, float]:
    """Return how much is labelled, how much of it is poison, and how far scores tell poison apart.

    labelled: share of all samples, in the last epoch; labelled_poison, _first, _most: share of poison in what
    is labelled, in the last epoch, in the first, and in the worst; poison_labelled: share of all poison that
    is labelled; isolation_precision, isolation_recall: of poison in what is not labelled; smallest_class:
    least labelled share of an observed class; changed: share of samples whose side changed before the last
    epoch; auroc, auroc_first: chance that a poisoned sample has a higher score than another; score_clean,
    score_poison: means, in nats.
    """
    labelled = np.concatenate([each[LABELLED] for each in trainings])
    first, scores = trainings[0][SCORES][0], trainings[-1][SCORES][-1]
    poison, last = truth.is_poison, labelled[-1]
    by_epoch = poison_by_epoch(labelled, poison)
    return {
        "labelled": mean(last),
        "labelled_poison": by_epoch[-1],
        "labelled_poison_first": by_epoch[0],
        "labelled_poison_most": np.max(by_epoch, initial=0.0, where=np.isfinite(by_epoch)),
        "poison_labelled": mean(last[poison]),
        **isolation(~last, poison),
        "smallest_class": smallest_class_by_epoch(labelled, truth.observed)[-1],
        "changed": mean(last != labelled[-2]) if len(labelled) > 1 else np.nan,
        "auroc": auroc(scores, poison),
        "auroc_first": auroc(first, poison),
        "score_clean": mean(scores[~poison]),
        "score_poison": mean(scores[poison]),
    }


def poison_by_epoch(labelled: np.ndarray, poison: np.ndarray) -> np.ndarray:
    """Return the share of poison in what is labelled float64 [E]; nan where nothing is."""
    return np.array([mean(poison[row]) for row in labelled])


def smallest_class_by_epoch(labelled: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return the least labelled share of an observed class float64 [E]."""
    classes = [labelled[:, observed == c].mean(1, dtype=np.float64) for c in np.unique(observed)]
    least: np.ndarray = np.min(classes, axis=0)
    return least


class Scores(NamedTuple):
    """Scores to be drawn."""

    title: str
    values: np.ndarray  # float [N]
    labelled: np.ndarray  # bool [N]
    log: bool  # whether they are losses, drawn by their logarithm


def figure(shown: Sequence[Scores], trainings: Sequence[Training], truth: Truth) -> Figure:
    """Draw what parted the samples, and what was labelled by epoch; dashed: where the next rule begins."""
    picture, axes = panels(len(shown) + 1)
    for ax, scores in zip(axes, shown, strict=False):
        _draw_scores(ax, scores, truth.is_poison)
        ax.set_title(scores.title, fontsize="medium")
    _draw_epochs(axes[-1], trainings, truth)
    axes[-1].set_title("what is labelled", fontsize="medium")
    return picture


def _draw_scores(ax: Axes, scores: Scores, poison: np.ndarray) -> None:
    limit = scores.values[scores.labelled].max(initial=-np.inf)
    line = float(limit) if np.isfinite(limit) else None
    if scores.log:
        draw_histogram(ax, scores.values, poison, line, "labelled up to")
        return
    draw_stacked(ax, scores.values, poison, np.histogram_bin_edges(scores.values, 50))
    if line is not None:
        ax.axvline(line, color="black", linestyle="--", linewidth=0.8, label=f"labelled up to {line:.3g}")
    ax.set_xlabel("fall of the loss", fontsize="small")
    ax.set_ylabel("samples", fontsize="small")
    dress(ax)


def _draw_epochs(ax: Axes, trainings: Sequence[Training], truth: Truth) -> None:
    labelled, poison = np.concatenate([each[LABELLED] for each in trainings]), truth.is_poison
    epochs = np.arange(1, len(labelled) + 1)
    found, least = poison_by_epoch(labelled, poison), smallest_class_by_epoch(labelled, truth.observed)
    ax.plot(epochs, found, color=PARTS[1][1], marker=".", label="poison in what is labelled")
    ax.plot(epochs, labelled.mean(1), color=SHARE, label="labelled, of all samples")
    ax.plot(epochs, least, color=LEAST, marker=".", label="labelled, of the class with the fewest")
    ax.axhline(mean(poison), color=PARTS[1][1], linestyle=":", linewidth=1, label="poison in all samples")
    for begin in np.cumsum([len(each[LABELLED]) for each in trainings])[:-1]:
        ax.axvline(begin + 0.5, color="black", linestyle="--", linewidth=0.8)
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("share", fontsize="small")
    number_epochs(ax)
    dress(ax)

"""How well LfD's teacher separates poison from clean samples. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.isolation import isolation
from bdtune.defending.loss_pictures import draw_histogram, draw_map, draw_trace, panels
from bdtune.metrics import auroc, mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth


TITLES = ("the teacher's losses", "while it is trained", "its features, by t-SNE")


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return how well the teacher's losses separate poison from the rest, and how strong the ascent is.

    isolation_precision, isolation_recall: of the candidates against the poisoned samples; auroc: of low
    losses; candidates, candidates_target: share of all samples, and of candidates labelled as the target;
    gamma, loss_max, loss_median, loss_clean, loss_poison (means): nats; ties: samples whose loss is gamma;
    poison_above_clean: share of poisoned samples above the clean mean; loss_shift: mean loss in evaluation
    mode minus that of the last epoch's own forward passes; weight_positive, weight_negative: sums;
    push: |negative| / positive.
    """
    losses = artefacts["losses"].arrays["losses"]
    gamma = float(artefacts["threshold"].arrays["gamma"][0])
    candidates = artefacts["threshold"].arrays["candidates"]
    weights = artefacts["weights"].arrays["weights"].astype(np.float64)
    positive, negative = float(weights[weights > 0].sum()), float(weights[weights < 0].sum())
    return {
        **isolation(candidates, truth.is_poison),
        **_of_losses(losses, truth),
        "gamma": gamma,
        "ties": float(np.count_nonzero(losses == gamma)) if candidates.any() else 0.0,
        "candidates": mean(candidates),
        "candidates_target": mean(truth.observed[candidates] == truth.target),
        "loss_shift": mean(losses) - mean(artefacts["teacher"].arrays["trace.losses"][-1]),
        "weight_positive": positive,
        "weight_negative": negative,
        "push": abs(negative) / positive if positive else np.nan,
    }


def _of_losses(losses: np.ndarray, truth: Truth) -> dict[str, float]:
    poison = truth.is_poison
    clean_mean = mean(losses[~poison])
    return {
        "auroc": auroc(-losses, poison),
        "loss_max": float(losses.max(initial=0.0)),
        "loss_median": float(np.median(losses)) if len(losses) else np.nan,
        "loss_clean": clean_mean,
        "loss_poison": mean(losses[poison]),
        "poison_above_clean": mean(losses[poison] > clean_mean),
    }


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw what the teacher saw of clean and of poisoned samples.

    Its losses with gamma; their means while it was trained, with the share of poison above the clean mean
    (the paper's figures 1, 2 and 6); and its features laid out by t-SNE (figure 7).
    """
    picture, (left, middle, right) = panels(3)
    threshold = artefacts["threshold"].arrays
    gamma = float(threshold["gamma"][0]) if threshold["candidates"].any() else None
    draw_histogram(left, artefacts["losses"].arrays["losses"], truth.is_poison, gamma, "gamma =")
    trace = artefacts["teacher"].arrays["trace.losses"]
    draw_trace(middle, trace, truth.is_poison, share_above=True)
    map_ = artefacts["embedding"].arrays
    draw_map(right, map_["points"], truth.is_poison[map_["ids"]])
    for ax, title in zip((left, middle, right), TITLES, strict=True):
        ax.set_title(title, fontsize="medium")
    return picture

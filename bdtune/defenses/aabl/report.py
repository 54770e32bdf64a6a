"""What A-ABL's split got right and wrong, and a picture of its scores. The truth is read after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.isolation import isolation
from bdtune.defending.loss_pictures import draw_stacked, draw_trace, dress, panels
from bdtune.defenses.aabl.split import bounds
from bdtune.metrics import auroc, defined, mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

BINS = 60


def diagnose(
    artefacts: Mapping[str, Artefact], truth: Truth, clamp: tuple[float, float] | None
) -> dict[str, float]:
    """Return how much is kept, how much of it is poison, and how the perturbation did.

    gamma: kept share of all samples; rho_vul: share of poison in what is kept; kept_poison, kept_clean: kept
    shares of poison and of the rest; isolation_precision, isolation_recall: of poison in what is left out;
    smallest_class: least kept share of an observed class; auroc: chance that a poisoned sample scores below
    another; flipped_poison, flipped_clean: shares whose prediction the perturbation changes; with iFGSM also
    unmoved: share of images that it left as they were, for want of a gradient; with Otsu also threshold,
    separability and clamped (1 where the clamp decided).
    """
    losses, scores = artefacts["losses"].arrays, artefacts["scores"].arrays["scores"]
    poison = truth.is_poison
    kept = np.zeros(len(poison), bool)
    kept[artefacts["split"].arrays["ids"]] = True
    flipped = losses["predictions"] != losses["clean_predictions"]
    found = {
        "gamma": mean(kept),
        "rho_vul": mean(poison[kept]),
        "kept_poison": mean(kept[poison]),
        "kept_clean": mean(kept[~poison]),
        "smallest_class": min(mean(kept[truth.observed == c]) for c in np.unique(truth.observed)),
        "auroc": auroc(-scores, poison),
        "flipped_poison": mean(flipped[poison]),
        "flipped_clean": mean(flipped[~poison]),
        **isolation(~kept, poison),
    }
    if "unmoved" in losses:
        found["unmoved"] = mean(losses["unmoved"])
    if "threshold" in artefacts:
        limit = artefacts["threshold"].arrays
        low, high = bounds(len(scores), clamp)
        above = np.count_nonzero(scores > limit["threshold"][0])
        found["threshold"], found["separability"] = limit["threshold"][0], limit["separability"][0]
        found["clamped"] = float(not low <= above <= high)
    return defined(found)


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw the losses of both trainings, and scores of images as they are and perturbed between them.

    The dashed line is the lowest score that is kept. The last training is of what is kept, on adversarial
    images; where it is `natural` it records no losses.
    """
    last, kept = artefacts["classifier"].arrays, artefacts["split"].arrays["ids"]
    picture, (trained, *axes) = panels(4 if "trace.losses" in last else 3)
    draw_trace(trained, artefacts["naive"].arrays["trace.losses"], truth.is_poison)
    trained.set_title("naive training", fontsize="medium")
    if "trace.losses" in last:
        final = axes.pop()
        draw_trace(final, last["trace.losses"], truth.is_poison[kept])
        final.set_title("adversarial training on what is kept", fontsize="medium")
    _draw_scores(axes, artefacts["scores"].arrays, kept, truth.is_poison)
    return picture


def _draw_scores(
    axes: list[Axes], scores: Mapping[str, np.ndarray], kept: np.ndarray, poison: np.ndarray
) -> None:
    both = [scores["clean_scores"], scores["scores"]]
    edges = np.linspace(min(v.min(initial=0.0) for v in both), max(v.max(initial=1e-9) for v in both), BINS)
    titles = ("scores of images as they are", "scores of perturbed images")
    for ax, values, title in zip(axes, both, titles, strict=True):
        draw_stacked(ax, values, poison, edges)
        ax.set_yscale("symlog", linthresh=10)
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel("score; low: the label is predicted firmly", fontsize="small")
        ax.set_ylabel("samples", fontsize="small")
    axes[1].sharey(axes[0])
    if len(kept):
        least = scores["scores"][kept].min()
        axes[1].axvline(least, color="black", linestyle="--", linewidth=0.8, label=f"kept from {least:.3g}")
    for ax in axes:
        dress(ax)

"""What D-ST's split got right, and a picture of it. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.isolation import isolation
from bdtune.defending.loss_pictures import BINS, PARTS, draw_stacked, dress, panels
from bdtune.defenses.dst.split import CLEAN, POISON
from bdtune.metrics import auroc, defined, mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth


def diagnose(
    artefacts: Mapping[str, Artefact], truth: Truth, kept: tuple[int, ...] | None
) -> dict[str, float]:
    """Return how well FCT separates poison, and what of each part is poison; `kept` are flags, if any are.

    auroc: of high FCT; fct_clean, fct_poison: means; zero: share of FCTs that are exactly 0; gamma_c,
    gamma_p: the highest FCT taken as clean and the lowest taken as poison; clean, poison, uncertain: shares
    of all samples; isolation_precision, isolation_recall: of what is taken as poison; rho_clean,
    rho_not_poison: share of poison in what is taken as clean, and in this with what is uncertain;
    smallest_class: least share of an observed class that is taken as clean. Where some are kept (form
    adversarial) also gamma, their share of all samples, and rho_vul, the share of poison in them.
    """
    fct, split = artefacts["fct"].arrays["fct"], artefacts["split"].arrays
    poison, flags = truth.is_poison, split["flags"]
    clean, taken = flags == CLEAN, flags == POISON
    found = {
        "auroc": auroc(fct, poison),
        "fct_clean": mean(fct[~poison]),
        "fct_poison": mean(fct[poison]),
        "zero": mean(fct == 0),
        "gamma_c": split["gamma_c"][0],
        "gamma_p": split["gamma_p"][0] if taken.any() else np.nan,
        "clean": mean(clean),
        "poison": mean(taken),
        "uncertain": mean(~clean & ~taken),
        "rho_clean": mean(poison[clean]),
        "rho_not_poison": mean(poison[~taken]),
        "smallest_class": min(mean(clean[truth.observed == label]) for label in np.unique(truth.observed)),
        **isolation(taken, poison),
    }
    if kept is not None:
        rows = np.isin(flags, kept)
        found["gamma"], found["rho_vul"] = mean(rows), mean(poison[rows])
    return defined(found)


def figure(artefacts: Mapping[str, Artefact], truth: Truth) -> Figure:
    """Draw FCT of clean and poisoned samples with both thresholds, and what is taken as clean by class."""
    picture, (left, right) = panels(2)
    fct, split = artefacts["fct"].arrays["fct"], artefacts["split"].arrays
    draw_stacked(left, fct, truth.is_poison, np.linspace(0.0, fct.max(), BINS + 1))
    for name, gamma, style in (
        ("clean up to", split["gamma_c"], "--"),
        ("poison from", split["gamma_p"], ":"),
    ):
        if np.isfinite(gamma[0]):
            label = f"{name} {gamma[0]:.3g}"
            left.axvline(gamma[0], color="black", linestyle=style, linewidth=0.8, label=label)
    left.set_xlabel("FCT", fontsize="small")
    left.set_ylabel("samples", fontsize="small")
    left.set_title("how far features move", fontsize="medium")
    dress(left)
    _draw_classes(right, split["flags"] == CLEAN, truth)
    return picture


def _draw_classes(ax: Axes, clean: np.ndarray, truth: Truth) -> None:
    """Draw how many samples of each observed class are taken as clean, poisoned ones on top."""
    edges = np.arange(truth.observed.max() + 2) - 0.5
    below: np.ndarray = np.zeros(len(edges) - 1)
    for (name, colour), rows in zip(PARTS, (~truth.is_poison, truth.is_poison), strict=True):
        count = np.histogram(truth.observed[clean & rows], edges)[0]
        ax.stairs(below + count, edges, baseline=below, fill=True, color=colour, label=name)
        below = below + count
    ax.set_xlabel("observed class", fontsize="small")
    ax.set_ylabel("samples", fontsize="small")
    ax.set_title("taken as clean", fontsize="medium")
    dress(ax)

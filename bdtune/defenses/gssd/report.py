"""What GSSD got right and wrong, and a picture of its densities. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.distances import distances
from bdtune.defending.loss_pictures import draw_stacked
from bdtune.defenses.gssd.stages import Verdict, foreign_densities
from bdtune.metrics import mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import Truth

WORDS = {Verdict.CLEAN: "clean", Verdict.NON_DISRUPTIVE: "non-disruptive", Verdict.DISRUPTIVE: "disruptive"}
PANELS = 12


def diagnose(artefacts: Mapping[str, Artefact], truth: Truth) -> dict[str, float]:
    """Return the verdicts, E_c of the target and of the others, distances, and how clean each part is.

    detected_nd, detected_d: classes per verdict; detected_target, target_nd, target_d: 0 or 1;
    energy_*: nats per dimension; kept, relabelled: fractions of the training set; kept_poison: share of
    poison in what is kept of the target class; kept_poison_all: in all that is kept; relabel_recall: share of
    all poison that is relabelled; relabel_poison: share of poison in what is relabelled; relabel_acc: share
    of relabelled samples whose new label is the true one; distance_*, knn_purity: see `distances`.
    """
    verdict, energy = artefacts["class_tests"].arrays["verdict"], artefacts["class_tests"].arrays["energy"]
    found = {
        "detected": float(np.count_nonzero(verdict)),
        "detected_nd": float(np.count_nonzero(verdict == Verdict.NON_DISRUPTIVE)),
        "detected_d": float(np.count_nonzero(verdict == Verdict.DISRUPTIVE)),
        "energy_min": float(energy.min()),
    }
    if truth.target is not None:
        own = verdict[truth.target]
        others = np.delete(energy, truth.target)
        found |= {
            "detected_target": float(own != Verdict.CLEAN),
            "target_nd": float(own == Verdict.NON_DISRUPTIVE),
            "target_d": float(own == Verdict.DISRUPTIVE),
            "false_alarms": found["detected"] - float(own != Verdict.CLEAN),
            "energy_target": float(energy[truth.target]),
            "energy_others_min": float(others.min(initial=np.inf)),
        }
    found |= distances(artefacts["features"].arrays["z"], truth)
    found |= _parts(artefacts["split"].arrays["ids"], artefacts["relabel"], truth)
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _parts(kept: np.ndarray, relabelled: Artefact, truth: Truth) -> dict[str, float]:
    """Return how much is kept and relabelled, and how much of it is poison."""
    moved, labels = relabelled.arrays["ids"], relabelled.arrays["labels"]
    poison = truth.is_poison
    of_target = kept[truth.observed[kept] == truth.target] if truth.target is not None else kept[:0]
    count = max(1, len(poison))
    return {
        "kept": len(kept) / count,
        "relabelled": len(moved) / count,
        "kept_poison": mean(poison[of_target]),
        "kept_poison_all": mean(poison[kept]),
        "relabel_recall": float(poison[moved].sum() / poison.sum()) if poison.any() else np.nan,
        "relabel_poison": mean(poison[moved]),
        "relabel_acc": mean(labels == truth.labels[moved]),
    }


def figure(artefacts: Mapping[str, Artefact], truth: Truth, bins: int, trim: float, lambda_: float) -> Figure:
    """Draw, for the up to twelve classes of lowest E_c and all detected, the best foreign densities.

    Clean and poisoned samples are stacked; the dashed line is lambda. Margins are set by hand: matplotlib's
    own layout draws everything twice.
    """
    from matplotlib.figure import Figure

    L, labels = artefacts["density"].arrays["L"], artefacts["density"].arrays["labels"]
    verdict, energy = artefacts["class_tests"].arrays["verdict"], artefacts["class_tests"].arrays["energy"]
    shown = np.lexsort((energy, verdict == Verdict.CLEAN))[:PANELS]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    width, height = 2.9 * columns, 2.1 * rows + 0.4
    picture = Figure(figsize=(width, height))
    grid = picture.add_gridspec(
        rows, columns, left=0.4 / width, right=1 - 0.1 / width, bottom=0.6 / height, top=1 - 0.3 / height,
        wspace=0.18, hspace=0.38,
    )  # fmt: skip
    axes = [picture.add_subplot(grid[divmod(place, columns)]) for place in range(len(shown))]
    for ax, label in zip(axes, shown.tolist(), strict=True):
        values = foreign_densities(L, labels, label, trim)
        draw_stacked(ax, values, truth.is_poison[labels == label], np.histogram_bin_edges(values, bins))
        _dress(ax, f"class {label}: {WORDS[Verdict(verdict[label])]}, E = {_short(energy[label])}", lambda_)
    axes[0].legend(fontsize="x-small")
    picture.supxlabel(
        "best foreign density, exp(log p / d); E: mean -log p / d of other classes' samples under a class",
        fontsize="small",
    )
    return picture


def _short(energy: float) -> str:
    """Return an energy in three digits: 0.891, 12.2, 2.4e+05; inf for a class without other samples."""
    return f"{energy:.3g}" if energy < 1e4 else f"{energy:.1e}"


def _dress(ax: Axes, title: str, lambda_: float) -> None:
    ax.axvline(lambda_, color="black", linestyle="--", linewidth=0.8)
    ax.set_title(title, fontsize="small")
    ax.tick_params(labelsize="x-small")
    ax.locator_params(axis="x", nbins=5)
    ax.locator_params(axis="y", nbins=4, integer=True)

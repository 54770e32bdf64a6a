"""How far apart the entropies of clean and triggered inputs lie, as numbers and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.entropy_pictures import draw_spread
from bdtune.defending.loss_pictures import BINS, PARTS, dress, panels
from bdtune.metrics import mean
from bdtune.plugins.input_detector import DETECTION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.engine.stage import Artefact


def diagnose(artefacts: Mapping[str, Artefact]) -> dict[str, float]:
    """Return means of entropies in bits, and the boundary below which an input is rejected.

    entropy_clean, entropy_clean_std, entropy_triggered: of test inputs; boundary, unless it is infinite;
    fell_back: 1 where the normal fit gave no boundary.
    """
    seen = artefacts[DETECTION].arrays
    clean, triggered = -seen["clean"], -seen.get("triggered", np.empty(0))
    boundary = -float(seen["threshold"][0])
    return {
        "entropy_clean": mean(clean),
        "entropy_clean_std": float(clean.std()),
        "entropy_triggered": mean(triggered),
        "boundary": boundary if np.isfinite(boundary) else np.nan,
        "fell_back": float(artefacts["threshold"].info["fell_back"]),
    }


def figure(artefacts: Mapping[str, Artefact], overlays: int) -> Figure:
    """Draw the entropies of clean and triggered test inputs, and how their spread settles with overlays."""
    picture, (left, right) = panels(2)
    _draw_entropies(left, artefacts[DETECTION])
    draw_spread(right, artefacts["entropies"].arrays["entropies"], overlays)
    return picture


def _draw_entropies(ax: Axes, found: Artefact) -> None:
    seen = found.arrays
    kinds = {name: -seen[name] for name in ("clean", "triggered") if len(seen.get(name, ()))}
    edges = np.linspace(0, max(values.max() for values in kinds.values()) + 1e-6, BINS + 1)
    for (name, values), (_, colour) in zip(kinds.items(), PARTS, strict=False):
        share = np.histogram(values, edges)[0] / len(values)
        ax.stairs(share, edges, fill=True, alpha=0.6, color=colour, label=name)
    boundary = -float(seen["threshold"][0])
    if np.isfinite(boundary):
        ax.axvline(boundary, color="black", linestyle="--", linewidth=0.8, label=f"boundary {boundary:.3g}")
    ax.set_title("test inputs", fontsize="small")
    ax.set_xlabel("mean entropy in bits", fontsize="small")
    ax.set_ylabel("share of inputs", fontsize="small")
    dress(ax)

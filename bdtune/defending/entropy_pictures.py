"""A picture of the entropies that STRIP's threshold is set on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.defending.loss_pictures import PARTS, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_spread(ax: Axes, entropies: np.ndarray, overlays: int) -> None:
    """Draw how the standard deviation of clean images' entropies [n, N] settles with the overlays."""
    counts = np.arange(1, entropies.shape[1] + 1)
    means = np.cumsum(entropies, 1, dtype=np.float64) / counts
    ax.plot(counts, means.std(0), color=PARTS[0][1], label="clean calibration images")
    ax.axvline(overlays, color="black", linestyle="--", linewidth=0.8, label=f"{overlays} overlays")
    ax.set_ylim(bottom=0)
    ax.set_title("spread of clean entropies", fontsize="small")
    ax.set_xlabel("overlays", fontsize="small")
    ax.set_ylabel("standard deviation in bits", fontsize="small")
    dress(ax)

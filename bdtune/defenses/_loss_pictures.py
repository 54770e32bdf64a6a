"""Pictures of losses by sample, coloured by the truth: what LfD and ABL draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 50
FLOOR = 1e-8  # smaller losses are drawn there: the axis is logarithmic
PARTS = (("clean", "tab:blue"), ("poisoned", "tab:red"))


def two_panels() -> tuple[Figure, tuple[Axes, Axes]]:
    """Return a figure with two panels side by side."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8.0, 3.2), layout="constrained")
    left, right = picture.subplots(1, 2)
    return picture, (left, right)


def draw_histogram(ax: Axes, losses: np.ndarray, poison: np.ndarray, line: float | None, name: str) -> None:
    """Draw how many samples have which loss, clean and poisoned ones stacked, and a line where they part."""
    values = np.log10(np.maximum(losses, FLOOR))
    ends = (values.min(initial=0.0), values.max(initial=0.0))
    edges = np.linspace(ends[0], max(ends[1], ends[0] + 1e-6), BINS + 1)
    names, colours = zip(*PARTS, strict=True)
    ax.hist([values[~poison], values[poison]], list(edges), stacked=True, color=colours, label=names)
    if line is not None:
        place = float(np.log10(max(line, FLOOR)))
        ax.axvline(place, color="black", linestyle="--", linewidth=0.8, label=f"{name} = {line:.3g}")
    ax.set_xlabel("log10 of the loss", fontsize="small")
    ax.set_ylabel("samples", fontsize="small")
    _dress(ax)


def draw_trace(ax: Axes, trace: np.ndarray, poison: np.ndarray) -> None:
    """Draw the mean loss of clean and poisoned samples by epoch; `trace` is [epochs, N]."""
    epochs = np.arange(1, len(trace) + 1)
    for (name, colour), rows in zip(PARTS, (~poison, poison), strict=True):
        if rows.any():
            ax.plot(epochs, trace[:, rows].mean(1, dtype=np.float64), color=colour, marker=".", label=name)
    ax.set_xlabel("epoch", fontsize="small")
    ax.set_ylabel("mean loss", fontsize="small")
    _dress(ax)


def _dress(ax: Axes) -> None:
    ax.tick_params(labelsize="x-small")
    ax.legend(fontsize="x-small")

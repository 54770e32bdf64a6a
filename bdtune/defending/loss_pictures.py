"""Pictures of losses by sample, coloured by the truth: what defenses draw."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 50
FLOOR = 1e-12  # smaller losses are drawn there: the axis is logarithmic
PARTS = (("clean", "#0072B2"), ("poisoned", "#D55E00"))  # told apart by colour-blind readers too
SHARE = "#6a737d"
ROOM = 1.4  # the height of a histogram's axis over its highest bar: a legend stands above the bars


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(4.0 * count, 3.4), layout="constrained")
    return picture, list(picture.subplots(1, count, squeeze=False)[0])


def draw_histogram(ax: Axes, losses: np.ndarray, poison: np.ndarray, line: float | None, name: str) -> None:
    """Draw how many samples have which loss, clean and poisoned ones stacked, and a line where they part."""
    values = np.log10(np.maximum(losses, FLOOR))
    ends = (values.min(initial=0.0), values.max(initial=0.0))
    edges = np.linspace(ends[0], max(ends[1], ends[0] + 1e-6), BINS + 1)
    draw_stacked(ax, values, poison, edges)
    if line is not None:
        place = float(np.log10(max(line, FLOOR)))
        ax.axvline(place, color="black", linestyle="--", linewidth=0.8, label=f"{name} {line:.3g}")
    ax.set_xlabel("log10 of the loss", fontsize="small")
    ax.set_ylabel("samples", fontsize="small")
    dress(ax)


def draw_stacked(ax: Axes, values: np.ndarray, poison: np.ndarray, edges: np.ndarray) -> None:
    """Draw a histogram of values [n] with poisoned ones on top of clean ones; `edges` are its bins' ends.

    One outline for each part: bars, one patch for each bin, take several times as long. Room is left for a
    legend, which matplotlib would place on the bars.
    """
    clean, poisoned = (np.histogram(values[rows], edges)[0] for rows in (~poison, poison))
    for (name, colour), low, high in zip(PARTS, (0 * clean, clean), (clean, clean + poisoned), strict=True):
        ax.stairs(high, edges, baseline=low, fill=True, color=colour, label=name)
    ax.set_ylim(0, ROOM * (clean + poisoned).max(initial=1))


def draw_trace(ax: Axes, trace: np.ndarray, poison: np.ndarray, *, share_above: bool = False) -> None:
    """Draw the mean loss of clean and poisoned samples by epoch; `trace` is [epochs, N].

    `share_above` adds, on an axis of its own, the share of poisoned samples above the clean mean.
    """
    epochs = np.arange(1, len(trace) + 1)
    for (name, colour), rows in zip(PARTS, (~poison, poison), strict=True):
        if rows.any():
            means = trace[:, rows].mean(1, dtype=np.float64)
            ax.plot(epochs, means, color=colour, marker=".", label=name)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    ax.set_ylabel("mean loss", fontsize="small")
    number_epochs(ax)
    if share_above and poison.any() and not poison.all():
        above = (trace[:, poison] > trace[:, ~poison].mean(1, keepdims=True)).mean(1)
        _beside(ax, epochs, above)
    dress(ax)


def draw_best(ax: Axes, values: np.ndarray, name: str) -> None:
    """Draw a value [epochs] by epoch, and mark the highest."""
    best = int(values.argmax())
    ax.plot(np.arange(1, len(values) + 1), values, color="black", marker=".", label=name)
    ax.plot(best + 1, values[best], "o", color="#009E73", label=f"best: {values[best]:.3g}, epoch {best + 1}")
    ax.set_ylim(bottom=0.0)
    ax.set_ylabel(name, fontsize="small")
    number_epochs(ax)
    dress(ax)


def number_epochs(ax: Axes) -> None:
    """Name the horizontal axis, with whole numbers."""
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("epoch", fontsize="small")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _beside(ax: Axes, epochs: np.ndarray, above: np.ndarray) -> None:
    other = ax.twinx()
    other.plot(epochs, above, color=SHARE, linestyle=":", marker=".", markersize=4)
    other.set_ylim(-0.03, 1.03)
    other.tick_params(labelsize="x-small", colors=SHARE)
    other.set_ylabel("share of poison above the clean mean", fontsize="small", color=SHARE)


def draw_map(ax: Axes, points: np.ndarray, poison: np.ndarray) -> None:
    """Draw points [n, 2], poisoned ones on top."""
    for (name, colour), rows, size in zip(PARTS, (~poison, poison), (6, 10), strict=True):
        ax.scatter(
            points[rows, 0], points[rows, 1], s=size, color=colour, label=name, linewidths=0, alpha=0.8
        )
    ax.set_xticks([])
    ax.set_yticks([])
    dress(ax)


def dress(ax: Axes) -> None:
    """Make ticks and legend small."""
    ax.tick_params(labelsize="x-small")
    ax.legend(fontsize="x-small")

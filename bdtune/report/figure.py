"""One picture of a sweep: accuracy against attack success, and what each knob does."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.knobs import short_names
from bdtune.report.best import marked
from bdtune.report.groups import Group, grouped, label, rank, varying
from bdtune.report.panels import ACC, ASR, BEST, QUIET, Panel, draw, panels, undefended
from bdtune.report.saving import save
from bdtune.report.selection import rule_title
from bdtune.trials.results import SEED, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bdtune.trials.results import SweepResult

LEAST_SPAN = 0.05  # of the accuracy axis
SCATTER, COLUMN, HEIGHT = 6.0, 3.6, 5.6  # inches
LEGEND = 1.9  # inches of one of its columns
Point = tuple[float, float]
STYLES: dict[str, dict[str, Any]] = {
    "undefended": {"marker": "D", "color": "black", "ms": 7, "zorder": 3},
    "best": {"marker": "*", "color": BEST, "ms": 14, "zorder": 4},
    "defended": {"marker": "o", "color": ACC, "ms": 5, "alpha": 0.75},
    "attack did not take": {"marker": "x", "color": QUIET, "ms": 6},
}


def overview(result: SweepResult, path: Path) -> Path | None:
    """Draw the picture into `path` (PNG) and return it; None where no defended trial has acc and asr."""
    groups = [group for group in grouped(result.trials) if group.stat("acc") and group.stat("asr")]
    if all(group.is_baseline for group in groups):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    best = marked(groups, result)
    axes = varying(groups)
    names = short_names(axes)
    shown = panels(groups, axes, best)
    columns = -(-len(shown) // 3)
    rows = max(1, -(-len(shown) // max(1, columns)))
    width = SCATTER + COLUMN * columns
    # the objects directly, not pyplot: no global state, and safe in any thread
    figure = Figure(figsize=(width, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, 5 + 3 * columns)
    scatter(figure.add_subplot(grid[:, :5]), groups, best)
    for index, panel in enumerate(shown):
        column, row = divmod(index, rows)
        box = figure.add_subplot(grid[row, 5 + 3 * column : 8 + 3 * column])
        draw(box, panel, names, groups, best)
    title = [
        line for text in _title(result, groups, best, names) for line in textwrap.wrap(text, int(width * 12))
    ]
    figure.suptitle("\n".join(title), fontsize=10)
    handles = _legend(groups, best, shown)
    ncols = max(2, int(width / LEGEND))
    figure.legend(handles=handles, loc="outside lower left", ncols=ncols, fontsize=8, frameon=False)
    return save(figure, path, dpi=120)


def _title(
    result: SweepResult, groups: Sequence[Group], best: Sequence[Group], names: Mapping[str, str]
) -> list[str]:
    """Return the lines that say what is drawn, which setting is best, and what used what no defender has."""
    settings = sum(not group.is_baseline for group in groups)
    seeds = [show(seed) for seed in sorted({t.params.get(SEED) for g in groups for t in g.trials}, key=rank)]
    drawn = "a small dot for each, a large mark for their mean" if len(seeds) > 1 else "one run each"
    counted = f"{settings} setting{'s' * (settings != 1)}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"
    lines = [f"sweep {result.sweep}: {counted}: {drawn}"]
    if best:
        which = (
            label(best[0], list(names), names) if len(best) == 1 else f"{len(best)} settings, see the table"
        )
        lines.append(f"best by {rule_title(result.metric)}: {which}")
    if not {read.reader for read in result.oracle} <= {"select"}:  # of the selection the line above says it
        lines.append("oracle: " + ", ".join(read.text() for read in result.oracle))
    return lines


def scatter(ax: Axes, groups: Sequence[Group], best: Sequence[Group]) -> None:
    """Draw accuracy against attack success: a large mark for each mean, a small dot for each seed."""
    for role in sorted({_role(group, best) for group in groups}):
        style = STYLES[role]
        points = [_points(group) for group in groups if _role(group, best) == role]
        seeds = [(mean, seed) for mean, *own in points for seed in own if len(own) > 1]
        joined = [at for mean, seed in seeds for at in (mean, seed, (np.nan, np.nan))]
        faint = {"color": style["color"], "alpha": 0.5}
        ax.plot(*_split(joined), linewidth=0.8, **faint)
        ax.plot(*_split([seed for _, seed in seeds]), linestyle="none", marker="o", ms=2.5, **faint)
        ax.plot(*_split([mean for mean, *_ in points]), linestyle="none", label=role, **style)
    reached = [value for group in groups for value in group.values("acc")]
    span = max(max(reached) - min(reached), LEAST_SPAN)  # else noise of a thousandth would fill the picture
    top = min((max(reached) + min(reached) + span) / 2, 1.0)
    ax.set_ylim(top - 1.08 * span, top + 0.05 * span)
    ax.set_xlim(-0.04, 1.04)
    ax.set_xlabel("asr: attack success (less is better)")
    ax.set_ylabel("acc: clean accuracy (more is better)")
    ax.grid(alpha=0.25)


def _points(group: Group) -> list[Point]:
    """Return the mean of asr and acc, then those of each seed; every group drawn has both."""
    means = [stat.mean for metric in ("asr", "acc") if (stat := group.stat(metric))]
    both = [t.metrics for t in group.done if {"asr", "acc"} <= t.metrics.keys()]
    return [(means[0], means[1]), *((metrics["asr"], metrics["acc"]) for metrics in both)]


def _split(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _legend(groups: Sequence[Group], best: Sequence[Group], shown: Sequence[Panel]) -> list[Any]:
    from matplotlib.lines import Line2D

    def line(text: str, color: str, marker: str = "", style: str = "none", size: float = 6) -> Any:
        return Line2D([], [], color=color, marker=marker, linestyle=style, markersize=size, label=text)

    handles = []
    for role in sorted({_role(group, best) for group in groups}):
        style = STYLES[role]
        handles.append(line(role, style["color"], style["marker"], size=min(10, style["ms"])))
    if shown:
        handles += [line("acc", ACC, "o", "-", 4), line("asr", ASR, "o", "-", 4)]
    if any(undefended(panel, groups, "acc") for panel in shown):
        handles.append(line("level without a defense", QUIET, style=":"))
    return handles


def _role(group: Group, best: Sequence[Group]) -> str:
    if group in best:
        return "best"
    if not group.attack_took:
        return "attack did not take"
    return "undefended" if group.is_baseline or group.params.get("defense") == "none" else "defended"

"""The figures of a report page, drawn by matplotlib as SVG: the same numbers give the same bytes."""

from __future__ import annotations

import base64
import io
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.knobs import short_names
from bdtune.report.figure import scatter
from bdtune.report.groups import rank, varying
from bdtune.report.panels import ACC, ASR, BEST, QUIET, log_scale
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bdtune.report.groups import Group
    from bdtune.report.page.costs import StageCost
    from bdtune.report.page.sensitivity import Effect, Pair
    from bdtune.trials.results import Scalar, TrialResult

ACROSS = 3
"""Panels beside one another."""
MOST_AXES = 10
MOST_COSTS = 12
MOST_CURVES = 12
MOST_TICKS = 6
LACKING = -0.15
"""Where a line of parallel coordinates passes an axis that its setting lacks."""
_NO_CURVE = ("epoch", "seconds", "lr")


@dataclass(frozen=True)
class Picture:
    """A picture of the page: a file's content, and what it shows."""

    file: str
    content: bytes
    caption: str
    wide: bool = False
    """Whether a phone should scroll it sideways instead of shrinking it."""

    @property
    def source(self) -> str:
        """The content as the address of an image, so that the page needs no other file."""
        kind = "svg+xml" if self.file.endswith(".svg") else "png"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


def picture(name: str, figure: Figure, caption: str, *, wide: bool = False) -> Picture:
    """Return a figure as an SVG file; a `$` in a name starts no formula."""
    import matplotlib as mpl

    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": name, "text.parse_math": False}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "bdtune"})
    return Picture(f"{name}.svg", out.getvalue(), caption, wide)


def from_file(path: Path, caption: str) -> Picture:
    """Return a picture that lies beside the report."""
    return Picture(path.name, path.read_bytes(), caption, wide=True)


@contextmanager
def _drawn(width: float, height: float) -> Iterator[Figure]:
    """Make a figure without pyplot: no global state, and safe in any thread."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "text.parse_math": False}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def tradeoff(groups: Sequence[Group], best: Sequence[Group]) -> Figure:
    """Draw accuracy against attack success of every setting, a small dot for each seed."""
    with _drawn(6.4, 4.4) as figure:
        ax = figure.subplots()
        scatter(ax, groups, best)
        _legend(figure, ax)
    return figure


def main_effects(effects: Sequence[Effect], metrics: Sequence[str]) -> Figure:
    """Draw a panel for each setting: means of its values, their range over the ways to hold the others."""
    colours = dict(zip(metrics, (ACC, ASR, BEST), strict=False))
    with _drawn(9, 2.5 * -(-len(effects) // ACROSS) + 0.4) as figure:
        for ax, effect in zip(_grid(figure, len(effects)), effects, strict=False):
            at = _places(ax, [level.value for level in effect.levels])
            for metric, colour in colours.items():
                known = [
                    (x, lv.metrics[metric])
                    for x, lv in zip(at, effect.levels, strict=True)
                    if metric in lv.metrics
                ]
                xs, means = [x for x, _ in known], [values[0] for _, values in known]
                joined = effect.slices and isinstance(effect.levels[0].value, int | float)
                ax.plot(xs, means, "o-" if joined else "o", ms=4, color=colour, label=metric)
                if effect.slices > 1:
                    ax.vlines(xs, [v[1] for _, v in known], [v[2] for _, v in known], color=colour, alpha=0.4)
            held = (
                "others held" if effect.slices == 1 else f"mean over {effect.slices} ways to hold the others"
            )
            ax.set_title(effect.name, fontsize=9)
            ax.set_xlabel(held if effect.slices else "others differ too", fontsize=7.5, color=QUIET)
            ax.set_ylim(-0.06, 1.06)
        _legend(figure, figure.axes[0])
    return figure


def heat_map(pair: Pair, metric: str) -> Figure:
    """Draw the means of two settings' combinations, each with its number."""
    rows, columns = pair.values
    with _drawn(max(3.6, 1.1 + 0.75 * len(columns)), max(2.4, 1.2 + 0.42 * len(rows))) as figure:
        ax = figure.subplots()
        image = ax.imshow(np.array(pair.means), cmap="viridis", vmin=0, vmax=1, aspect="auto")
        _name(ax, columns)
        ax.set_yticks(range(len(rows)), list(map(show, rows)))
        ax.set_xlabel(pair.names[1])
        ax.set_ylabel(pair.names[0])
        for i, row in enumerate(pair.means):
            for j, mean in enumerate(row):
                ax.text(
                    j, i, f"{mean:.2f}", ha="center", va="center", color="white" if mean < 0.6 else "black"
                )
        figure.colorbar(image, label=metric)
    return figure


def parallel(groups: Sequence[Group], metric: str, best: Sequence[Group]) -> Figure | None:
    """Draw each setting as a line through its values, coloured by a metric; None of fewer than two axes."""
    defended = [group for group in groups if not group.is_baseline and group.stat(metric)]
    paths = varying(defended)[:MOST_AXES]
    if len(paths) < 2:
        return None
    names = short_names(paths)
    numbers = [stat.mean for group in defended if (stat := group.stat(metric))]
    with _drawn(max(7.0, 1.3 * (len(paths) + 1)), 4.2) as figure:
        ax = figure.subplots()
        heights = [
            _heights(ax, x, [group.params.get(path) for group in defended]) for x, path in enumerate(paths)
        ]
        low, high = min(numbers), max(numbers)
        scaled = [(number - low) / (high - low) if high > low else 0.5 for number in numbers]
        from matplotlib import colormaps

        for i in sorted(range(len(defended)), key=lambda i: defended[i] in best):
            line = [own[i] for own in heights] + [scaled[i]]
            width = 2.6 if defended[i] in best else 1.2
            ax.plot(
                range(len(line)), line, color=colormaps["viridis"](scaled[i]), linewidth=width, alpha=0.85
            )
        for place, value in ((0, low), (1, high)):
            ax.annotate(
                f"{value:.3f}",
                (len(paths), place),
                (4, 0),
                textcoords="offset points",
                fontsize=7.5,
                va="center",
            )
        ax.set_xticks(range(len(paths) + 1), [*(names[path] for path in paths), metric])
        ax.set_yticks([])
        ax.set_xlim(-0.4, len(paths) + 0.5)
        ax.grid(axis="x", alpha=0.6)
        for side in ("left", "right", "top", "bottom"):
            ax.spines[side].set_visible(False)
    return figure


def _heights(ax: Axes, x: int, values: Sequence[Scalar]) -> list[float]:
    """Return where values stand on an axis of their own, from 0 to 1, and write its ticks.

    What a setting lacks stands below.
    """
    present = sorted({value for value in values if value is not None}, key=rank)
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        numbers = [float(value) for value in present if isinstance(value, int | float)]
        if log_scale(numbers):
            numbers = [float(np.log10(number)) for number in numbers]
        span = (numbers[-1] - numbers[0]) or 1.0
        place = {v: (n - numbers[0]) / span for v, n in zip(present, numbers, strict=True)}
    else:
        place = {value: i / max(1, len(present) - 1) for i, value in enumerate(present)}
    shown = present if len(present) <= 6 else [present[0], present[len(present) // 2], present[-1]]
    for value in shown:
        ax.annotate(show(value)[:26], (x, place[value]), (4, 1), textcoords="offset points", fontsize=7.5)
    if None in values:
        ax.annotate("none", (x, LACKING), (4, 1), textcoords="offset points", fontsize=7.5, color=QUIET)
    return [LACKING if value is None else place[value] for value in values]


def cost_bars(costs: Sequence[StageCost]) -> Figure:
    """Draw the seconds of each stage: computed for this sweep, and saved by sharing."""
    shown = costs[:MOST_COSTS]
    with _drawn(7.2, 0.9 + 0.3 * len(shown)) as figure:
        ax = figure.subplots()
        names = [cost.role for cost in shown]
        ax.barh(names, [cost.spent for cost in shown], color=ACC, label="computed")
        ax.barh(
            names,
            [c.saved for c in shown],
            left=[c.spent for c in shown],
            color="#A6CEE3",
            label="saved by sharing",
        )
        ax.invert_yaxis()
        ax.set_xlabel("seconds")
        _legend(figure, ax)
        ax.grid(axis="x", alpha=0.25)
    return figure


def curves(trials: Sequence[tuple[str, TrialResult]]) -> Figure | None:
    """Draw the epochs of named trials, a panel for each stage and number; None where none are stored."""
    found: dict[tuple[str, str], list[tuple[str, list[float], list[float]]]] = {}
    for name, trial in trials:
        for role, rows in trial.curves.items():
            for column in dict.fromkeys(key for row in rows for key in row if key not in _NO_CURVE):
                known = [
                    (float(row.get("epoch", i + 1)), row[column])
                    for i, row in enumerate(rows)
                    if column in row
                ]
                if len(known) > 1:
                    line = (name, [x for x, _ in known], [y for _, y in known])
                    found.setdefault((role, column), []).append(line)
    if not found:
        return None
    panels = list(found.items())[:MOST_CURVES]
    colours = dict(zip((name for name, _ in trials), (QUIET, BEST, ACC, ASR), strict=False))
    with _drawn(9, 2.1 * -(-len(panels) // ACROSS) + 0.4) as figure:
        for ax, ((role, column), lines) in zip(_grid(figure, len(panels)), panels, strict=False):
            for name, xs, ys in lines:
                ax.plot(xs, ys, color=colours.get(name, QUIET), label=name, linewidth=1.3)
            ax.set_title(f"{role}: {column}", fontsize=9)
            ax.set_xlabel("epoch", fontsize=7.5, color=QUIET)
        _legend(figure, *figure.axes[: len(panels)])
    return figure


def _legend(figure: Figure, *axes: Axes) -> None:
    """Name the lines of some axes below the figure, each name once: nothing is covered or searched for."""
    lines: dict[str, Any] = {}
    for ax in axes:
        for line, name in zip(*ax.get_legend_handles_labels(), strict=True):
            lines.setdefault(name, line)
    place = "outside lower left"
    figure.legend(list(lines.values()), list(lines), loc=place, ncols=4, fontsize=8, frameon=False)


def _grid(figure: Figure, count: int) -> list[Axes]:
    """Return panels in rows of `ACROSS`; those that stay empty are hidden."""
    rows = -(-count // ACROSS)
    axes = list(np.ravel(figure.subplots(rows, ACROSS, squeeze=False)))
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[:count]:
        ax.grid(alpha=0.25)
        ax.tick_params(labelsize=7.5)
    return axes


def _places(ax: Axes, values: Sequence[Scalar]) -> list[float]:
    """Return where values stand along an axis: numbers to scale, anything else side by side."""
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) == len(values):
        if log_scale(numbers):
            ax.set_xscale("log")
        distinct = sorted(set(numbers))
        shown = distinct[:: -(-len(distinct) // MOST_TICKS)]
        ax.set_xticks(shown, [f"{number:.3g}" for number in shown])
        ax.minorticks_off()
        return numbers
    _name(ax, values)
    ax.set_xlim(-0.5, len(values) - 0.5)
    return [float(i) for i in range(len(values))]


def _name(ax: Axes, values: Sequence[Scalar]) -> None:
    """Write values side by side below an axis; long ones are turned."""
    texts = [show(value)[:26] for value in values]
    turned: dict[str, Any] = {"rotation": 30, "ha": "right"} if sum(map(len, texts)) > 24 else {}
    ax.set_xticks(range(len(texts)), texts, **turned)

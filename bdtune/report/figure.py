"""One picture of a sweep: accuracy against attack success, and what each knob does with the others held."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.knobs import short_names
from bdtune.report.best import marked
from bdtune.report.groups import Group, Stat, grouped, label, rank, varying
from bdtune.report.selection import given, rule_title
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from bdtune.trials.results import Scalar, SweepResult

MOST_PANELS = 6
MOST_TICKS = 8
ACC, ASR, BEST, QUIET = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"  # told apart by colour-blind readers too
LEAST_SPAN = 0.05  # of the accuracy axis
HELD_LENGTH = 60  # characters that fit under a panel
LOG_RATIO = 20.0  # numeric knobs spread wider than this are drawn on a logarithmic axis


@dataclass(frozen=True)
class Panel:
    """One knob's values against the groups that differ in it alone."""

    axis: str
    groups: tuple[Group, ...]
    held: dict[str, Scalar]


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
    # the objects directly, not pyplot: no global state, and safe in any thread
    figure = Figure(figsize=(6.0 + 3.6 * columns, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, 5 + 3 * columns)
    _scatter(figure.add_subplot(grid[:, :5]), groups, best)
    for index, panel in enumerate(shown):
        column, row = divmod(index, rows)
        box = figure.add_subplot(grid[row, 5 + 3 * column : 8 + 3 * column])
        _one_factor(box, panel, names, groups, best)
    title = f"sweep {result.sweep}: {len(groups)} settings, mean ± standard deviation over seeds"
    figure.suptitle("\n".join([title, *_oracles(result)]))
    handles = _legend(result, groups, best, names, with_panels=bool(shown))
    figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def panels(groups: list[Group], axes: list[str], best: Sequence[Group]) -> list[Panel]:
    """Return for each varying parameter the groups that differ in it alone.

    Of all ways to hold the others, the one with the most values of the parameter is taken; of those the one
    with most of the best settings in it: the best row of a grid, the centre of a one-factor-at-a-time sweep.
    """
    found = []
    for axis in axes:
        slices: dict[tuple[Any, ...], list[Group]] = {}
        for group in groups:
            if not group.is_baseline and axis in group.params:
                others = tuple(rank(group.params.get(other)) for other in axes if other != axis)
                slices.setdefault(others, []).append(group)
        if not slices:
            continue
        chosen = max(sorted(slices.items()), key=lambda entry: (len(entry[1]), _count(best, entry[1])))[1]
        if len(chosen) > 1:
            chosen.sort(key=lambda group: rank(group.params[axis]))
            held = {other: chosen[0].params.get(other) for other in axes if other != axis}
            found.append(Panel(axis, tuple(chosen), held))
    return sorted(found, key=lambda panel: -len(panel.groups))[:MOST_PANELS]


def _scatter(ax: Axes, groups: list[Group], best: Sequence[Group]) -> None:
    for role in sorted({_role(group, best) for group in groups}):
        members = [group for group in groups if _role(group, best) == role]
        (asr, asr_std), (acc, acc_std) = (_numbers(members, metric) for metric in ("asr", "acc"))
        ax.errorbar(asr, acc, xerr=asr_std, yerr=acc_std, linestyle="none", **_style(role))
    low, high = ax.get_ylim()
    if high - low < LEAST_SPAN:  # else noise of a thousandth would fill the picture
        middle = min((low + high) / 2, 1.0 - LEAST_SPAN / 2 + 0.005)
        ax.set_ylim(middle - LEAST_SPAN / 2, middle + LEAST_SPAN / 2)
    ax.set_xlim(-0.04, 1.04)
    ax.set_xlabel("asr: attack success (less is better)")
    ax.set_ylabel("acc: clean accuracy (more is better)")
    ax.grid(alpha=0.25)


def _legend(
    result: SweepResult, groups: list[Group], best: Sequence[Group], names: dict[str, str],
    *, with_panels: bool,
) -> list[Any]:  # fmt: skip
    from matplotlib.lines import Line2D

    def line(text: str, color: str, marker: str = "", style: str = "none", size: float = 6) -> Any:
        return Line2D([], [], color=color, marker=marker, linestyle=style, markersize=size, label=text)

    handles = []
    for role in sorted({_role(group, best) for group in groups}):
        text = role
        if role == "best":
            text = f"best ({rule_title(result.metric)}): "
            text += label(best[0], list(names), names) if len(best) == 1 else f"{len(best)}, see the table"
        style = _style(role)
        handles.append(line(text, style["color"], style["fmt"], size=min(10, style["ms"])))
    if with_panels:
        handles += [line("acc", ACC, "o", "-", 4), line("asr", ASR, "o", "-", 4)]
        handles += [line("level without a defense", QUIET, style=":")]
    return handles


def _oracles(result: SweepResult) -> list[str]:
    """Return a line that names all that used what no defender has; of the selection the legend says it."""
    if {read.reader for read in result.oracle} <= {"select"}:
        return []
    return ["oracle: " + ", ".join(read.text() for read in result.oracle)]


def _count(best: Sequence[Group], groups: Sequence[Group]) -> int:
    return sum(group in groups for group in best)


def _role(group: Group, best: Sequence[Group]) -> str:
    if group in best:
        return "best"
    if not group.attack_took:
        return "attack did not take"
    return "undefended" if group.is_baseline else "defended"


def _style(role: str) -> dict[str, Any]:
    return {
        "undefended": {"fmt": "D", "color": "black", "ms": 7, "zorder": 3},
        "best": {"fmt": "*", "color": BEST, "ms": 14, "zorder": 4},
        "defended": {"fmt": "o", "color": ACC, "ms": 5, "alpha": 0.75, "elinewidth": 1},
        "attack did not take": {"fmt": "x", "color": QUIET, "ms": 6},
    }[role]


def _numbers(groups: Sequence[Group], metric: str) -> tuple[list[float], list[float]]:
    """Return means and spreads; every group drawn has the metric."""
    stats = [stat for group in groups if (stat := group.stat(metric))]
    return [stat.mean for stat in stats], [stat.std or 0.0 for stat in stats]


def _one_factor(
    ax: Axes, panel: Panel, names: dict[str, str], groups: list[Group], best: Sequence[Group]
) -> None:
    positions, ticks = _positions(ax, [group.params[panel.axis] for group in panel.groups])
    for metric, color in (("acc", ACC), ("asr", ASR)):
        means, spread = _numbers(panel.groups, metric)
        ax.errorbar(positions, means, yerr=spread, marker="o", ms=4, color=color, capsize=2)
        if undefended := _undefended(panel, groups, metric):
            ax.axhline(undefended.mean, color=color, linestyle=":", linewidth=1.2, alpha=0.8)
        for index in (panel.groups.index(group) for group in best if group in panel.groups):
            ax.plot(positions[index], means[index], "*", color=BEST, ms=9, zorder=5)
    every = -(-len(ticks) // MOST_TICKS)
    ax.set_xticks(positions[::every], ticks[::every], fontsize=8)
    ax.minorticks_off()
    ax.tick_params(axis="y", labelsize=8)
    ax.set_ylim(-0.06, 1.06)
    held = ", ".join(f"{names[axis]} {show(value)}" for axis, value in panel.held.items())
    # on a line of its own: beside the name it would run out of a narrow panel
    ax.set_xlabel(names[panel.axis] + (f"\n({held})" if 0 < len(held) < HELD_LENGTH else ""), fontsize=7.5)
    ax.grid(alpha=0.25)


def _positions(ax: Axes, values: list[Scalar]) -> tuple[list[float], list[str]]:
    """Return where values stand: by their size when they are numbers, else one after the other."""
    ticks = [show(value) for value in values]
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < len(values):
        return [float(index) for index in range(len(values))], ticks
    positive = [number for number in numbers if number > 0]
    if min(numbers) >= 0 and positive and max(positive) / min(positive) >= LOG_RATIO:
        if min(numbers) > 0:
            ax.set_xscale("log")
        else:  # 0, which turns a part of a method off, stands a decade below the smallest
            ax.set_xscale("symlog", linthresh=min(positive), linscale=0.7)
    return numbers, ticks


def _undefended(panel: Panel, groups: list[Group], metric: str) -> Stat | None:
    cases = [given(group.params) for group in panel.groups]
    references = [group for group in groups if group.is_baseline and given(group.params) == cases[0]]
    if any(case != cases[0] for case in cases):
        return None
    return references[0].stat(metric) if len(references) == 1 else None  # several: there is no one level

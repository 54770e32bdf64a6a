"""The small panels of a sweep's picture: accuracy and attack success against one knob."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.report.groups import Group, Stat, rank
from bdtune.report.selection import given
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from bdtune.trials.results import Scalar

MOST_PANELS = 6
MOST_TICKS = 8
ACC, ASR, BEST, QUIET = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"  # told apart by colour-blind readers too
HELD_LENGTH = 60  # characters that fit under a panel
LOG_RATIO = 20.0  # numeric knobs spread wider than this are drawn on a logarithmic axis


@dataclass(frozen=True)
class Panel:
    """One knob's values against groups that differ in it alone, or, of a search, in other knobs too."""

    axis: str
    groups: tuple[Group, ...]
    held: Mapping[str, Scalar] | None
    """The values of the other knobs; None where they differ."""


def panels(groups: Sequence[Group], axes: Sequence[str], best: Sequence[Group]) -> list[Panel]:
    """Return a panel for each varying parameter, of the groups that differ in it alone.

    Of all ways to hold the others, the one with the most values of the parameter is taken; of those the one
    with most of the best settings in it: the best row of a grid, the centre of a one-factor-at-a-time sweep.
    Where no two groups differ in it alone, as in a search, the panel has all groups.
    """
    found = [_panel(groups, axis, [other for other in axes if other != axis], best) for axis in axes]
    worth = [panel for panel in found if len(panel.groups) > 1]
    return sorted(worth, key=lambda panel: -len(panel.groups))[:MOST_PANELS]


def _panel(groups: Sequence[Group], axis: str, others: Sequence[str], best: Sequence[Group]) -> Panel:
    having = [group for group in groups if not group.is_baseline and axis in group.params]
    having.sort(key=lambda group: rank(group.params[axis]))
    slices: dict[tuple[Any, ...], list[Group]] = {}
    for group in having:
        slices.setdefault(tuple(rank(group.params.get(other)) for other in others), []).append(group)
    chosen = max(
        sorted(slices.items()),
        key=lambda entry: (len(entry[1]), sum(group in entry[1] for group in best)),
        default=((), []),
    )[1]
    if len(chosen) < 2:
        return Panel(axis, tuple(having), None)
    return Panel(axis, tuple(chosen), {other: chosen[0].params.get(other) for other in others})


def draw(
    ax: Axes, panel: Panel, names: Mapping[str, str], groups: Sequence[Group], best: Sequence[Group]
) -> None:
    """Draw a panel: a large dot for each mean, small ones for its seeds; a line joins numbers held apart.

    Names stand below each other and are not joined: there is nothing between two of them.
    """
    values = [group.params[panel.axis] for group in panel.groups]
    upright = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = _numbers(ax, values, held=panel.held is not None) if upright else _names(ax, values)
    joined = "-" if upright and panel.held is not None else "none"

    def plot(at: Sequence[float], heights: Sequence[float], **style: Any) -> None:
        ax.plot(*((at, heights) if upright else (heights, at)), **style)

    for metric, color in (("acc", ACC), ("asr", ASR)):
        means = [stat.mean for group in panel.groups if (stat := group.stat(metric))]
        at, seeds = _seeds(panel.groups, places, metric)
        plot(at, seeds, marker="o", ms=2.5, linewidth=1, color=color, alpha=0.6)
        plot(places, means, marker="o", ms=4.5, linestyle=joined, color=color)
        if level := undefended(panel, groups, metric):
            line = ax.axhline if upright else ax.axvline
            line(level.mean, color=color, linestyle=":", linewidth=1.2, alpha=0.8)
        for index in (panel.groups.index(group) for group in best if group in panel.groups):
            plot([places[index]], [means[index]], marker="*", color=BEST, mec=color, ms=9, zorder=5)
    (ax.set_ylim if upright else ax.set_xlim)(-0.06, 1.06)
    _label(ax, panel, names, upright=upright)


def _seeds(groups: Sequence[Group], places: Sequence[float], metric: str) -> tuple[list[float], list[float]]:
    """Return places and values of all seeds; a gap ends the line that is the range of one setting's."""
    found = [(place, group.values(metric)) for place, group in zip(places, groups, strict=True)]
    several = [(place, [*values, math.nan]) for place, values in found if len(values) > 1]
    return [place for place, values in several for _ in values], [v for _, values in several for v in values]


def _label(ax: Axes, panel: Panel, names: Mapping[str, str], *, upright: bool) -> None:
    """Name the knob, and what the others are held at on a line of its own, where there is room."""
    if panel.held is None:
        held = "all settings; other knobs differ too"
    else:
        held = ", ".join(f"{names[axis]} {show(value)}" for axis, value in panel.held.items())
    below = f"({held})" if 0 < len(held) < HELD_LENGTH else ""
    name = names[panel.axis]
    ax.set_xlabel("\n".join(filter(None, (name if upright else "", below))), fontsize=7.5)
    if not upright:
        ax.set_ylabel(name, fontsize=7.5)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.25)


def _names(ax: Axes, values: Sequence[Scalar]) -> list[float]:
    """Return where values that are no numbers stand: one below the other."""
    ticks = list(dict.fromkeys(map(show, values)))
    ax.set_yticks(range(len(ticks)), ticks)
    ax.set_ylim(len(ticks) - 0.5, -0.5)
    return [float(ticks.index(show(value))) for value in values]


def _numbers(ax: Axes, values: Sequence[Scalar], *, held: bool) -> list[float]:
    """Return where numbers stand, on an axis that suits them; few that are held have a tick each."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    positive = [number for number in numbers if number > 0]
    if min(numbers) >= 0 and positive and max(positive) / min(positive) >= LOG_RATIO:
        if min(numbers) > 0:
            ax.set_xscale("log")
        else:  # 0, which turns a part of a method off, stands a decade below the smallest
            ax.set_xscale("symlog", linthresh=min(positive), linscale=0.7)
    if held:
        every = -(-len(numbers) // MOST_TICKS)
        ax.set_xticks(numbers[::every], [f"{number:.3g}" for number in numbers[::every]])
        ax.minorticks_off()
    return numbers


def log_scale(numbers: Sequence[float]) -> bool:
    """Return whether numbers suit a logarithmic axis: all positive, and spread wide."""
    return bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) >= LOG_RATIO


def undefended(panel: Panel, groups: Sequence[Group], metric: str) -> Stat | None:
    """Return the level without a defense; None where the panel has several."""
    cases = [given(group.params) for group in panel.groups]
    baselines = [group for group in groups if group.is_baseline and given(group.params) == cases[0]]
    if any(case != cases[0] for case in cases):
        return None
    return baselines[0].stat(metric) if len(baselines) == 1 else None

"""Which numbers of a cross table are the best among those that may be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bdtune.plugins.metric import METRICS, better

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.report.cross import Cell, Line
    from bdtune.report.cross_axes import Key

Given = tuple["Key", ...]
At = tuple[int, int]
"""The line of a cell, and its number in it."""


def with_best(
    lines: Sequence[Line],
    rows: Sequence[Given | None],
    columns: Sequence[Given | None],
    metrics: Sequence[str],
) -> list[Line]:
    """Mark the best number of each metric among the cells that differ only in what a defender chooses.

    So with defenses in the rows and attacks in the columns it is the best of its column. `rows` and `columns`
    are what no defender chooses in each line and column, None where it is undefended. Out of the contest are
    those, and cells of an attack that did not take: such a number credits no defense.
    """
    contests: dict[tuple[str, Given], list[At]] = {}
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            for k, metric in enumerate(metrics):
                at = (i, j * len(metrics) + k)
                if row is not None and column is not None and _compared(_cell(lines, at), metric):
                    contests.setdefault((metric, row + column), []).append(at)
    best = {at for (metric, _), own in contests.items() for at in _best(lines, own, metric)}
    return [
        replace(line, cells=tuple(replace(cell, best=(i, j) in best) for j, cell in enumerate(line.cells)))
        for i, line in enumerate(lines)
    ]


def _cell(lines: Sequence[Line], at: At) -> Cell:
    return lines[at[0]].cells[at[1]]


def _compared(cell: Cell, metric: str) -> bool:
    return metric in METRICS.own and cell.ours is not None and cell.took


def _best(lines: Sequence[Line], contest: Sequence[At], metric: str) -> list[At]:
    """Return the cells with the best number as it is written; none where there is nothing to compare."""
    if len(contest) < 2:
        return []
    shown = {at: round(ours.mean, 3) for at in contest if (ours := _cell(lines, at).ours) is not None}
    best = (max if better(metric) == "max" else min)(shown.values())
    return [at for at, value in shown.items() if value == best]

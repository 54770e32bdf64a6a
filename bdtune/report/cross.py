"""A sweep's results as a cross table: settings along rows and columns, metrics in the cells.

A cell holds ours, what was published, and their difference; one without a number says why it has none.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from bdtune.plugins.metric import METRICS, better
from bdtune.report.baselines import Baselines
from bdtune.report.cross_axes import (
    EXPANDED,
    PLUGINS,
    UNDEFENDED,
    axes_of,
    completed,
    given_by,
    is_undefended,
)
from bdtune.report.cross_best import with_best
from bdtune.report.groups import Group, Stat, grouped
from bdtune.report.selection import ranking, rule_title
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.config.sweep import Published, TableLayout
    from bdtune.report.cross_axes import Axis, Key
    from bdtune.trials.results import SweepResult

NOT_ASKED, NOT_RUN, NOT_TAKEN = "not asked", "not run", "not taken"
OUT_OF_BUDGET = "out of budget"
NO_ATTACK, NO_DEFENSE, NOT_MEASURED = "no attack", "no defense", "unmeasured"
REASONS = {
    NOT_ASKED: "no such trial is asked for",
    NOT_RUN: "the trial has no result yet",
    "no data": "the data set is not at hand",
    OUT_OF_BUDGET: "the trial does not fit the campaign's budget",
    "failed": "the trial failed",
    "diverged": "a loss or a weight became infinite or undefined",
    "stopped": "the scheduler stopped the trial early",
    NOT_TAKEN: "the attack did not take, so no setting can be ranked by a rule that reads test data",
    NO_ATTACK: "without an attack there is nothing to measure",
    NO_DEFENSE: "the number is a comparison with the undefended model",
    NOT_MEASURED: "no trial of the cell measures it",
}
"""Why a cell has no number; a caller may give further reasons for trials that were not run."""
_ATTACKED = ("asr", "asr_all", "ra", "der")


@dataclass(frozen=True)
class Cell:
    """One metric of one row and column."""

    ours: Stat | None = None
    missing: str = ""
    """Why there is no number; nothing where there is one."""
    published: float | None = None
    trials: tuple[str, ...] = ()
    """Ids of the trials behind the number."""
    asked: int = 0
    """How many seeds the setting has; more than `ours.n` where some have no result."""
    took: bool = True
    """Whether the attack reached its acceptance band without a defense."""
    best: bool = False
    """Whether it is the best of the numbers that it may be compared with."""

    @property
    def difference(self) -> float | None:
        """Ours less what was published."""
        return None if self.ours is None or self.published is None else self.ours.mean - self.published

    @property
    def beyond_spread(self) -> bool:
        """Whether the difference is larger than the standard deviation over seeds; false without one."""
        difference, std = self.difference, self.ours.std if self.ours else None
        return difference is not None and std is not None and abs(difference) > std

    @property
    def partial(self) -> bool:
        """Whether some seeds have no result."""
        return self.ours is not None and self.ours.n < self.asked


@dataclass(frozen=True)
class Line:
    """A row: its labels, its cells column by column, and whether it starts a part of the table."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    starts: bool = False


@dataclass(frozen=True)
class CrossTable:
    """A table as data; `bdtune.report.cross_table` turns it into text of any form."""

    title: str
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    percent: bool = False


@dataclass
class _Builder:
    """What all cells of a table need."""

    result: SweepResult
    layout: TableLayout
    published: Sequence[Published]
    why: Mapping[str, str]
    groups: Sequence[Group]
    mixed: bool = False  # whether some cell has several settings
    trainings: int = 1  # undefended models of several trainings in one cell
    fitting: dict[str, None] = field(default_factory=dict)  # sources of the published numbers shown

    def cells(self, groups: Sequence[Group]) -> list[Cell]:
        """Return a cell for each metric of the groups of a row and column."""
        if not groups:
            return [Cell(missing=NOT_ASKED)] * len(self.layout.cells)
        if is_undefended(groups[0]):
            return self._undefended(groups)
        self.mixed = self.mixed or len(groups) > 1
        if self.layout.of == "mean" and len(groups) > 1:
            return [self._mean(groups, metric) for metric in self.layout.cells]
        own = [group for group in self.groups if group in groups]  # ties as in the table of settings
        ranked = ranking(own, self.result.metric, self.result.mode)
        chosen = ranked[0] if ranked else groups[0] if len(groups) == 1 else None
        if chosen is None:
            published = {metric: self._published(groups, metric) for metric in self.layout.cells}
            why = self._why_none(groups)
            return [Cell(missing=why, published=published[metric]) for metric in self.layout.cells]
        return [self._cell(chosen, metric, metric, groups) for metric in self.layout.cells]

    def _undefended(self, groups: Sequence[Group]) -> list[Cell]:
        """Several undefended models are those of several trainings: their mean has no spread."""
        group, all_trials = groups[0], tuple(trial for each in groups for trial in each.trials)
        if len(groups) > 1:
            self.trainings = max(self.trainings, len(groups))
            group = Baselines(group.params, all_trials, is_baseline=True)
        return [self._cell(group, metric, f"undefended/{metric}", groups) for metric in self.layout.cells]

    def _cell(self, group: Group, metric: str, published_as: str, groups: Sequence[Group]) -> Cell:
        """`published_as`: an undefended model's numbers may stand in a paper beside those of the defense."""
        stat = group.stat(metric)
        return Cell(
            stat,
            "" if stat else self._why(group, metric),
            self._published([group, *groups], published_as),
            tuple(trial.id for trial in group.trials),
            len(group.trials),
            group.attack_took,
        )

    def _mean(self, groups: Sequence[Group], metric: str) -> Cell:
        """Return the mean over settings, with its standard deviation over them."""
        means = [stat.mean for group in groups if (stat := group.stat(metric))]
        stat = Stat(fmean(means), stdev(means) if len(means) > 1 else None, len(means)) if means else None
        why = "" if stat else self._why(groups[0], metric)
        ids = tuple(trial.id for group in groups for trial in group.trials)
        took = all(group.attack_took for group in groups)
        return Cell(stat, why, self._published(groups, metric), ids, len(groups), took)

    def _published(self, groups: Iterable[Group], metric: str) -> float | None:
        """Return the published number of a metric whose settings the first possible group has."""
        own = metric.removeprefix("undefended/")
        for group in groups:
            for number in self.published:
                name = own if number.params.get("defense") == "none" else metric
                if name in number.metrics and meets(number, group):
                    self.fitting[number.source] = None
                    return number.metrics[name]
        return None

    def _why(self, group: Group, metric: str) -> str:
        """Return why a setting lacks a metric."""
        if group.done:
            if group.params.get("attack") == "none" and metric in _ATTACKED:
                return NO_ATTACK
            known = METRICS.get(metric)
            compares = known is not None and known.measured_on == "comparison"
            return NO_DEFENSE if compares and is_undefended(group) else NOT_MEASURED
        return self._state(group)

    def _why_none(self, groups: Sequence[Group]) -> str:
        """Return why none of several settings can be shown."""
        finished = [group for group in groups if group.done]
        if finished:
            return NOT_TAKEN if not all(group.attack_took for group in finished) else NOT_MEASURED
        return self._state(groups[0])

    def _state(self, group: Group) -> str:
        """Return what became of trials of which none is done."""
        states = {trial.status for trial in group.trials}
        worst = next((state for state in ("failed", "diverged", "stopped") if state in states), None)
        return worst or next((self.why[t.id] for t in group.trials if t.id in self.why), NOT_RUN)


def meets(number: Published, group: Group) -> bool:
    """Return whether a group has the settings of a published number; an undefended one has no defense's."""
    own = {
        path: value
        for path, value in number.params.items()
        if not (is_undefended(group) and path.partition(".")[0] == "defense" and value != "none")
    }
    return all(path in group.params and group.params[path] == value for path, value in own.items())


def build(
    result: SweepResult,
    layout: TableLayout | None = None,
    *,
    published: Sequence[Published] = (),
    why: Mapping[str, str] | None = None,
    kind: str = "sweep",
) -> CrossTable:
    """Return the cross table of a sweep; rows and columns come in the order in which trials state them.

    Without a layout it follows from what varies. `why` gives, by trial id, why a trial was not run; `kind` is
    what the title calls the whole.
    """
    found = grouped(result.trials)
    layout = completed(layout, found)
    builder = _Builder(result, layout, published, why or {}, found)
    rows, columns = axes_of(layout, found)
    order = {trial.id: number for number, trial in enumerate(result.trials)}
    groups = [group for group in found if layout.undefended or not is_undefended(group)]
    groups.sort(key=lambda group: (not is_undefended(group), min(order[t.id] for t in group.trials)))
    at: dict[tuple[tuple[Key, ...], tuple[Key, ...]], list[Group]] = {}
    for group in groups:
        place = (tuple(a.key(group) for a in rows), tuple(a.key(group) for a in columns))
        at.setdefault(place, []).append(group)
    row_keys, column_keys = _in_order(place[0] for place in at), list(dict.fromkeys(p[1] for p in at))
    metrics = layout.cells
    lines = []
    for key in row_keys:
        cells = [cell for column in column_keys for cell in builder.cells(at.get((key, column), []))]
        lines.append(Line(_texts(rows, key), tuple(cells)))
    if rows[0].path in EXPANDED:
        lines = _parted(lines)
    given = [given_by(rows, key) for key in row_keys], [given_by(columns, key) for key in column_keys]
    lines = with_best(lines, *given, metrics)
    lines = _summarised(lines, layout)
    names = tuple(_head(columns, key) for key in column_keys)
    return CrossTable(
        layout.caption or _title(f"{kind} {result.sweep}", found, [*layout.rows, *layout.columns]),
        tuple(axis.name for axis in rows),
        tuple(axis.name for axis in columns),
        names,
        metrics,
        tuple(lines),
        tuple(_notes(builder, lines)),
        layout.percent,
    )


def _texts(axes: Sequence[Axis], key: tuple[Key, ...]) -> tuple[str, ...]:
    """Return the labels of a row or column; an undefended one is named once."""
    texts = [axis.text(own) for axis, own in zip(axes, key, strict=True)]
    return tuple("-" if text == UNDEFENDED in texts[:i] else text for i, text in enumerate(texts))


def _head(axes: Sequence[Axis], key: tuple[Key, ...]) -> str:
    """Return the name of a column: plugins by their names, knobs with theirs: "abl", "beta_d=0.01"."""
    texts = [(axis, text) for axis, text in zip(axes, _texts(axes, key), strict=True) if text != "-"]
    plain = (*PLUGINS, UNDEFENDED)
    return " ".join(t if axis.path in plain or t in plain else f"{axis.name}={t}" for axis, t in texts)


def _in_order(keys: Iterable[tuple[Key, ...]]) -> list[tuple[Key, ...]]:
    """Return distinct keys, those of an equal first setting together, in the order of their first ones."""
    distinct = list(dict.fromkeys(keys))
    first = list(dict.fromkeys(key[0] for key in distinct))
    return sorted(distinct, key=lambda key: first.index(key[0]))


def _parted(lines: Sequence[Line]) -> list[Line]:
    """Mark the first row of each part: the rows of one data set or attack, where they have more settings."""
    before, found = None, []
    for line in lines:
        starts = len(line.labels) > 1 and before is not None and line.labels[0] != before
        found.append(replace(line, starts=starts))
        before = line.labels[0]
    return found


def _summarised(lines: Sequence[Line], layout: TableLayout) -> list[Line]:
    """Return the rows with the layout's summary rows below each part."""
    if not layout.summary:
        return list(lines)
    parts: list[list[Line]] = []
    for line in lines:
        if line.starts or not parts:
            parts.append([])
        parts[-1].append(line)
    found: list[Line] = []
    for part in parts:
        found += part
        attacked = [line for line in part if "no attack" not in line.labels]
        for number, kind in enumerate(layout.summary):
            name = "mean" if kind == "mean" else "worst case"
            cells = tuple(
                _summary([line.cells[i] for line in attacked], layout.cells[i % len(layout.cells)], kind)
                for i in range(len(part[0].cells))
            )
            found.append(Line(_summary_labels(part[0].labels, name), cells, starts=number == 0))
    return found


def _summary_labels(labels: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return a summary row's labels: below the part's own where there are several."""
    return (name,) if len(labels) == 1 else (labels[0], name, *[""] * (len(labels) - 2))


def _summary(cells: Sequence[Cell], metric: str, kind: str) -> Cell:
    """Return the mean or the worst of a column's cells; none where one of them has no number."""

    def over(values: list[float]) -> float:
        return fmean(values) if kind == "mean" else (min if better(metric) == "max" else max)(values)

    ours = [cell.ours.mean for cell in cells if cell.ours is not None]
    theirs = [cell.published for cell in cells if cell.published is not None]
    published = over(theirs) if theirs and len(theirs) == len(cells) else None
    if not ours or len(ours) < len(cells):
        return Cell(missing=f"{len(ours)} of {len(cells)}", published=published)
    return Cell(Stat(over(ours), None, 1), published=published, took=all(cell.took for cell in cells))


def _title(whole: str, groups: Sequence[Group], axes: Sequence[str]) -> str:
    """Name the sweep or campaign, and the plugins that are equal in all cells."""
    defended = [group for group in groups if not group.is_baseline]
    words: list[str] = []
    for path in ("dataset", "attack", "defense", "model"):
        values = {show(group.params[path]) for group in defended if path in group.params}
        if path not in axes and len(values) == 1:
            words += values
    return f"{whole}: {', '.join(words)}" if words else whole


def _notes(builder: _Builder, lines: Sequence[Line]) -> list[str]:
    """Explain what stands in the cells: only marks and reasons that are there."""
    cells = [cell for line in lines for cell in line.cells]
    stats = [cell.ours for cell in cells if cell.ours is not None]
    result, layout = builder.result, builder.layout
    several = any(stat.std is not None for stat in stats)
    notes = (
        ["mean ± standard deviation over seeds" if several else "one seed: no spread is known"]
        if stats
        else []
    )
    if builder.mixed and layout.of == "best":
        reads = (
            ", which reads the test data that no defender has" if result.metric.startswith("oracle_") else ""
        )
        notes.append(f"of several settings in a cell the best by {rule_title(result.metric)} is shown{reads}")
    elif builder.mixed:
        notes.append("of several settings in a cell mean and standard deviation over them")
    if builder.trainings > 1:
        notes.append(
            f"undefended: mean over up to {builder.trainings} trainings, as settings have their own baselines"
        )
    if any(cell.difference is not None for cell in cells):
        judged = "*: larger than our standard deviation over seeds"
        notes.append(
            f"diff: ours less the paper's; {judged if several else 'none is marked without a spread'}"
        )
    notes += [f"paper: {source}" for source in builder.fitting]
    if any(not cell.took and cell.ours for cell in cells):
        notes.append("†: the attack did not take without a defense, so its numbers credit no defense")
    if any(cell.partial for cell in cells):
        notes.append("‡: some seeds have no result")
    if layout.summary:
        notes.append("mean, worst case: over the rows with an attack; 'a of b': of b rows a have a number")
    counts: dict[str, int] = {}
    for cell in cells:
        if cell.missing and not _is_count(cell):
            counts[cell.missing] = counts.get(cell.missing, 0) + 1
    notes += [f"{why}, {n} cell{'s' * (n != 1)}: {REASONS.get(why, why)}" for why, n in counts.items()]
    return notes


def _is_count(cell: Cell) -> bool:
    """Return whether a cell of a summary row says "3 of 5", as a number is missing above it."""
    return re.fullmatch(r"\d+ of \d+", cell.missing) is not None


def to_json(table: CrossTable) -> dict[str, Any]:
    """Return a table as JSON values, one entry for each metric of each row and column."""
    cells = [
        {
            "row": dict(zip(table.row_names, line.labels, strict=True)),
            "column": column,
            "metric": metric,
            "mean": cell.ours.mean if cell.ours else None,
            "std": cell.ours.std if cell.ours and _finite(cell.ours.std) else None,
            "n": cell.ours.n if cell.ours else 0,
            "published": cell.published,
            "difference": cell.difference,
            "beyond_spread": cell.beyond_spread,
            "attack_took": cell.took,
            "missing": cell.missing or None,
            "trials": list(cell.trials),
        }
        for line in table.lines
        for (column, metric), cell in zip(heads(table), line.cells, strict=True)
    ]
    return {
        "title": table.title,
        "rows": list(table.row_names),
        "columns": list(table.column_names),
        "cells": cells,
        "notes": list(table.notes),
    }


def heads(table: CrossTable) -> list[tuple[str, str]]:
    """Return column and metric of each of a row's cells."""
    return [(column, metric) for column in table.columns for metric in table.metrics]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)

"""The table of a sweep: one row per setting, means over seeds, undefended models first.

`build` makes a neutral table; `plain`, `rich_table`, `markdown` and `csv_text` write it.
"""

from __future__ import annotations

import csv
import io
import itertools
import textwrap
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bdtune.knobs import short_names
from bdtune.plugins.metric import columns
from bdtune.report.best import best_notes, marked
from bdtune.report.groups import Group, grouped, order_of, rank, varying
from bdtune.report.selection import by_rank
from bdtune.trials.results import DATA_SEED, SEED, Scalar, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table as RichTable

    from bdtune.config.sweep import Reference
    from bdtune.trials.results import SweepResult

NOT_TAKEN = "attack did not take"
EMPTY = "-"
LONGEST_WORD = 30  # longer words are broken when their column is wrapped


@dataclass(frozen=True)
class Column:
    """A column: numeric ones are aligned to the right; the highest `spare` goes first when room is scarce."""

    name: str
    numeric: bool = True
    spare: int = 0  # 0: never left out


@dataclass(frozen=True)
class Row:
    """One line of a table: cells as text, and what kind of line it is."""

    cells: tuple[str, ...]
    kind: str = ""  # "undefended", "best", "failed", "not_taken" or ""


@dataclass(frozen=True)
class Table:
    """A table ready to be written in any form."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def widths(self) -> list[int]:
        """Return each column's width in characters."""
        cells = [[column.name, *(row.cells[i] for row in self.rows)] for i, column in enumerate(self.columns)]
        lines = [[line for text in texts for line in text.split("\n")] for texts in cells]
        return [max(map(len, texts)) for texts in lines]

    def wrapped(self, width: int, gap: int = 2) -> Table:
        """Return the table with its widest columns of text wrapped, as far as it takes to fit `width`."""
        widths, least = self.widths(), self._least_widths()
        while sum(widths) + gap * (len(widths) - 1) > width:
            wide = [i for i in range(len(widths)) if widths[i] > least[i]]
            if not wide:
                break
            widths[max(wide, key=lambda i: widths[i])] -= 1
        rows = tuple(replace(row, cells=_wrapped(row.cells, widths)) for row in self.rows)
        notes = tuple("\n".join(textwrap.wrap(note, width)) for note in self.notes)
        return replace(self, rows=rows, notes=notes)

    def _least_widths(self) -> list[int]:
        """Return how narrow each column may become: numbers keep theirs, texts that of their longest word."""
        widths = self.widths()
        for i, column in enumerate(self.columns):
            if not column.numeric:
                longest = max((len(word) for row in self.rows for word in row.cells[i].split()), default=0)
                widths[i] = max(len(column.name), min(longest, LONGEST_WORD))
        return widths

    def narrowed(self, width: int, gap: int = 3) -> Table:
        """Return the table with as many columns left out as it takes to fit `width` characters."""
        table = self
        missing: list[str] = []
        while sum(table.widths()) + gap * len(table.columns) > width:
            spare = max(range(len(table.columns)), key=lambda i: (table.columns[i].spare, i))
            if not table.columns[spare].spare:
                break
            missing.append(table.columns[spare].name)
            columns = _without(table.columns, spare)
            table = replace(
                table, columns=columns, rows=tuple(Row(_without(r.cells, spare), r.kind) for r in table.rows)
            )
        note = (f"no room for: {', '.join(reversed(missing))}",) if missing else ()
        return replace(table, notes=(*table.notes, *note))


def _without(values: tuple[Any, ...], index: int) -> tuple[Any, ...]:
    return values[:index] + values[index + 1 :]


def _wrapped(cells: Sequence[str], widths: Sequence[int]) -> tuple[str, ...]:
    return tuple(
        cell if len(cell) <= width else "\n".join(textwrap.wrap(cell, width, break_on_hyphens=False))
        for cell, width in zip(cells, widths, strict=True)
    )


@dataclass(frozen=True)
class _Layout:
    """What decides the columns of a sweep's table."""

    axes: list[str]
    names: dict[str, str]
    metrics: dict[str, bool]
    """Each with whether it has room in a narrow table too."""
    diagnostics: list[str]
    paper: list[str]
    numbers: Sequence[Reference] = field(default_factory=list)
    epochs: bool = False  # whether the classifiers' budgets differ, so that they have a column


def build(
    result: SweepResult,
    *,
    paper: Sequence[Reference] = (),
    diagnostics: Sequence[str] = (),
    limit: int | None = None,
) -> Table:
    """Return the table of a sweep.

    `diagnostics` names further metrics to show; `limit` keeps the undefended rows and the best so many.
    """
    groups = grouped(result.trials)
    best = marked(groups, result)
    layout = _layout(groups, paper, diagnostics, result.metric)
    shown = _limited(groups, by_rank(groups, result.metric, result.mode), layout.axes, limit)
    rows = tuple(_row(group, layout, group in best) for group in shown)
    left_out = len(groups) - len(shown)
    dropped = [f"not shown: {left_out} settings; the report's files have them all"] if left_out else []
    notes = (*dropped, *best_notes(result, groups), *_notes(result, groups, layout))
    return Table(_title(result, groups, layout), _columns(layout, groups), rows, notes)


def _fits(number: Reference, group: Group) -> bool:
    """Return whether a published number was measured under the group's settings.

    It stands beside defended trials, unless it names a defense itself.
    """
    if group.is_baseline and not any(name.split(".")[0] == "defense" for name in number.params):
        return False
    return all(name in group.params and group.params[name] == value for name, value in number.params.items())


def _layout(
    groups: list[Group], paper: Sequence[Reference], diagnostics: Sequence[str], rule: str
) -> _Layout:
    present = {name for group in groups for trial in group.trials for name in trial.metrics}
    metrics = columns(present, rule)
    axes = varying(groups)
    fitting = [number for number in paper if any(_fits(number, group) for group in groups)]
    published = dict.fromkeys(name for number in fitting for name in number.metrics)
    wanted = dict.fromkeys([*diagnostics, *published])
    diagnostics = [name for name in wanted if name in present and name not in metrics]
    paper_metrics = [name for name in (*metrics, *diagnostics) if name in published]
    epochs = len({group.epochs for group in groups}) > 1
    return _Layout(axes, short_names(axes), metrics, diagnostics, paper_metrics, fitting, epochs)


def _title(result: SweepResult, groups: list[Group], layout: _Layout) -> str:
    """Name the sweep and the plugins that all its trials share."""
    params = next((group.params for group in groups if not group.is_baseline), {})
    plugins = ((kind, f"{kind}.name") for kind in ("dataset", "attack", "defense", "model"))
    fixed = [params[name] for names in plugins for name in names if isinstance(params.get(name), str)]
    varied = [params[axis] for axis in layout.axes if axis in params]
    return f"sweep {result.sweep}: " + ", ".join(str(value) for value in fixed if value not in varied)


def _columns(layout: _Layout, groups: list[Group]) -> tuple[Column, ...]:
    texts = {axis for axis in layout.axes for g in groups if isinstance(g.params.get(axis), str)}
    return (
        *(Column(layout.names[axis], axis not in texts) for axis in layout.axes),
        Column("status", numeric=False),
        Column("n"),
        *([Column("epochs", spare=2)] if layout.epochs else []),
        *(Column(name, spare=0 if vital else 2) for name, vital in layout.metrics.items()),
        *(Column(name, spare=3) for name in layout.diagnostics),
        *(Column(f"paper {name}", spare=1) for name in layout.paper),
    )


def _row(group: Group, layout: _Layout, best: bool) -> Row:
    axes = [show(group.params[axis]) if axis in group.params else EMPTY for axis in layout.axes]
    stats = [group.stat(name) for name in (*layout.metrics, *layout.diagnostics)]
    published = next((number.metrics for number in layout.numbers if _fits(number, group)), {})
    paper = [f"{published[name]:.3f}" if name in published else EMPTY for name in layout.paper]
    numbers = [stat.text() if stat else EMPTY for stat in stats]
    epochs = [EMPTY if group.epochs is None else str(group.epochs)] if layout.epochs else []
    cells = (*axes, _status(group, best), str(len(group.done)), *epochs, *numbers, *paper)
    return Row(cells, _kind(group, best))


def _status(group: Group, best: bool) -> str:
    """Say what the row is and what is wrong with it; plain "done" is said only of ordinary rows."""
    role = "undefended" if group.is_baseline else "best" if best else ""
    state = "" if role and group.status == "done" else group.status
    told = "oracle" if group.oracle else ""
    return ", ".join(part for part in (role, state, told, "" if group.attack_took else NOT_TAKEN) if part)


def _kind(group: Group, best: bool) -> str:
    if best:
        return "best"
    if not group.attack_took:
        return "not_taken"
    if group.is_baseline:
        return "undefended"
    return "" if group.complete else "failed"


def _limited(groups: list[Group], ranked: list[Group], axes: list[str], limit: int | None) -> list[Group]:
    defended = [group for group in groups if not group.is_baseline]
    if limit is None or len(defended) <= limit:
        return groups
    chosen = {id(group) for group in ranked}
    rest = [group for group in defended if id(group) not in chosen]
    kept = sorted([*ranked, *rest][:limit], key=lambda group: order_of(group, axes))
    return [group for group in groups if group.is_baseline] + kept


def _notes(result: SweepResult, groups: list[Group], layout: _Layout) -> list[str]:
    summary = result.summary()
    seeds = [show(seed) for seed in sorted({trial.params.get(SEED) for trial in result.trials}, key=rank)]
    notes = [
        f"stages: {summary['stages_computed']} computed, {summary['stages_shared']} shared; "
        f"{duration(summary['seconds_computed'])} spent, {duration(summary['seconds_saved'])} saved"
    ]
    if len(seeds) > 1:
        notes.append(f"n: how many of the seeds {', '.join(seeds)} have a result; mean ± standard deviation")
        if all(trial.params.get(DATA_SEED) is not None for trial in result.trials):
            notes.append("data_seed is set: the seeds of a row differ in training, on the same poisoned set")
    elif seeds:
        notes.append(f"one seed, {seeds[0]}: no spread is known; n: trials with a result")
    notes.extend(f"paper: {source}" for source in dict.fromkeys(n.source for n in layout.numbers) if source)
    notes.extend(_budgets(groups))
    notes.extend(_failures(groups))
    return notes


def _budgets(groups: list[Group]) -> list[str]:
    """Say where a defended classifier and its undefended one are not trained for equally many epochs."""
    pairs = {(trial.epochs, trial.undefended_epochs) for group in groups for trial in group.trials}
    unequal = sorted((own, other) for own, other in pairs if own and other and own != other)
    return [
        f"not the same training budget: {own} epochs with the defense, {other} without; "
        "acc and der compare them all the same"
        for own, other in unequal
    ]


def _failures(groups: list[Group], most: int = 5) -> list[str]:
    bad = [t for group in groups for t in group.trials if t.status in ("failed", "diverged")]
    lines = [f"{t.status} {t.id}: {(t.error or 'no message').strip().splitlines()[-1]}" for t in bad[:most]]
    return lines + [f"... and {len(bad) - most} more"] * (len(bad) > most)


def duration(seconds: float) -> str:
    """Return a length of time in two units at most: "4.2 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


# ------------------------------------------------------------------------------------------------ writers


def plain(table: Table) -> str:
    """Return a table as aligned text; a cell may have several lines."""
    widths = table.widths()

    def aligned(cells: Sequence[str]) -> str:
        lines = itertools.zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
        return "\n".join(map(aligned_line, lines))

    def aligned_line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(cells, widths, table.columns, strict=True)
        ]
        return "  ".join(padded).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    head = aligned([column.name for column in table.columns])
    body = [aligned(row.cells) for row in table.rows]
    return "\n".join([table.title, rule, head, rule, *body, rule, *table.notes])


STYLES = {"best": "bold green", "failed": "red", "not_taken": "yellow", "undefended": "dim"}


def rich_table(table: Table, width: int) -> RichTable:
    """Return a table for a terminal of `width` characters; colours: best row, failures, attacks not taken."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table as RichTable

    table = table.narrowed(width).wrapped(width - 2, gap=3)
    caption = escape("\n".join(table.notes))
    style: dict[str, Any] = {"title_justify": "left", "title_style": "bold", "caption_justify": "left"}
    shown = RichTable(title=escape(table.title), caption=caption, caption_style="", box=SIMPLE_HEAD, **style)
    shown.padding, shown.pad_edge = (0, 1), False
    for column in table.columns:
        shown.add_column(
            escape(column.name), justify="right" if column.numeric else "left", no_wrap=column.numeric
        )
    for row in table.rows:
        shown.add_row(*map(escape, row.cells), style=STYLES.get(row.kind))
    return shown


def markdown(table: Table) -> str:
    """Return a table as GitHub Markdown, the best row in bold."""
    dashes = ["---:" if column.numeric else "---" for column in table.columns]
    lines = [_pipes([column.name for column in table.columns]), _pipes(dashes)]
    for row in table.rows:
        cells = [cell.replace("|", "\\|") for cell in row.cells]
        lines.append(_pipes([f"**{cell}**" if row.kind == "best" and cell else cell for cell in cells]))
    notes = "\n".join(f"- {note}" for note in table.notes)
    return f"## {table.title}\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def csv_text(result: SweepResult) -> str:
    """Return one line per setting with full precision: parameters, counts, mean and spread of each metric."""
    groups = grouped(result.trials)
    params = dict.fromkeys(name for group in groups for name in group.params)
    metrics = sorted({name for group in groups for trial in group.trials for name in trial.metrics})
    spread = [column for name in metrics for column in (name, f"{name}:std")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["undefended", "best", "attack_took", "oracle", *params, "status", "n", *spread])
    best = marked(groups, result)
    rules = [read for read in result.oracle if "." not in read.reader]
    for group in groups:
        reads = "; ".join(read.text() for read in (*rules, *group.oracle))
        flags: list[Any] = [show(flag) for flag in (group.is_baseline, group in best, group.attack_took)]
        flags.append(reads)
        values = [show_exact(group.params[name]) if name in group.params else "" for name in params]
        numbers: list[Any] = []
        for name in metrics:
            stat = group.stat(name)
            numbers += [stat.mean, "" if stat.std is None else stat.std] if stat else ["", ""]
        writer.writerow([*flags, *values, group.status, len(group.done), *numbers])
    return out.getvalue()


def show_exact(value: Scalar) -> str:
    """Return a parameter's value with all its digits."""
    return repr(value) if isinstance(value, float) else show(value)

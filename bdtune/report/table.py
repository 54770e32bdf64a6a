"""The table of a sweep: one row per setting, means over seeds, the best first below undefended models.

`build` makes a neutral table; `plain`, `rich_table`, `markdown` and `csv_text` write it.
"""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bdtune.knobs import short_names
from bdtune.plugins.metric import columns
from bdtune.report.baselines import together, value_of, whose
from bdtune.report.best import best_notes, marked
from bdtune.report.fit import EMPTY, GAP, fitted, total, widths
from bdtune.report.groups import Group, grouped, rank, rounded, varying
from bdtune.report.models import model_notes
from bdtune.report.order import blocks, shown, sort_metric
from bdtune.report.seconds import with_seconds
from bdtune.trials.results import DATA_SEED, SEED, Scalar, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Group as Lines

    from bdtune.config.sweep import Published
    from bdtune.trials.results import SweepResult

NOT_TAKEN = "attack did not take"
SHORT = 6  # characters that a knob's value may have before it is rounded
PLUGINS = ("dataset", "attack", "defense", "model")


@dataclass(frozen=True)
class Column:
    """A column: numeric ones are aligned to the right; the highest `spare` goes first when room is scarce."""

    name: str
    numeric: bool = True
    spare: int = 0  # 0: never left out
    knob: bool = False  # whether it may share one column with the other knobs
    group: str = ""  # a head above those of the columns beside it that have the same one


@dataclass(frozen=True)
class Row:
    """One line of a table: cells as text, and what kind of line it is."""

    cells: tuple[str, ...]
    kind: str = ""  # "undefended", "best", "failed", "not_taken" or ""
    bold: frozenset[int] = frozenset()  # cells that stand out in forms other than plain text
    starts: bool = False  # whether a rule stands above it


@dataclass(frozen=True)
class Table:
    """A table ready to be written in any form."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Layout:
    """What decides the columns of a sweep's table."""

    axes: list[str]
    names: dict[str, str]
    metrics: dict[str, bool]
    """Each with whether it has room in a narrow table too."""
    diagnostics: list[str]
    paper: list[str]
    numbers: Sequence[Published] = field(default_factory=list)
    epochs: bool = False  # whether the classifiers' budgets differ, so that they have a column
    counts: bool = False  # whether settings lack results of some seeds, so that counts have a column
    texts: Mapping[tuple[str, Scalar], str] = field(default_factory=dict)  # of the knobs' values


def build(
    result: SweepResult,
    *,
    paper: Sequence[Published] = (),
    notes: Sequence[str] = (),
    diagnostics: Sequence[str] = (),
    sort: str | None = None,
    top: int | None = None,
    limit: int | None = None,
) -> Table:
    """Return the table of a sweep.

    `paper` holds published numbers to show beside ours, `notes` what the sweep says of itself; `diagnostics`
    names further metrics to show; `sort` a metric or a setting to sort by; see `order.blocks`.
    Of each block the undefended rows and the first `top` settings are kept, else `limit` settings in all.
    Raises `UserError` where there is nothing called like `sort`.
    """
    result = with_seconds(result, paper)
    groups = grouped(result.trials)
    best = marked(groups, result)
    found = [together(block) for block in blocks(groups, result, sort)]
    rows = shown(found, top=top, limit=limit)
    metric = sort_metric(groups, sort)
    layout = _layout(groups, paper, [*([metric] if metric else []), *diagnostics], result.metric)
    left_out = sum(map(len, found)) - len(rows)
    dropped = [f"not shown: {left_out} settings; the report's files have them all"] if left_out else []
    below = (*dropped, *best_notes(result, groups), *model_notes(groups), *_notes(result, groups, layout))
    remarks = tuple(f"note: {note}" for note in notes)
    lines = tuple(_row(group, layout, groups, best=group in best) for group in rows)
    return Table(_title(result, groups, layout), _columns(layout, groups, metric), lines, below + remarks)


def _fits(number: Published, group: Group) -> bool:
    """Return whether a published number was measured under the group's settings.

    It stands beside defended trials, unless it names a defense itself.
    """
    if group.is_baseline and not any(name.split(".")[0] == "defense" for name in number.params):
        return False
    return all(name in group.params and group.params[name] == value for name, value in number.params.items())


def _layout(
    groups: list[Group], paper: Sequence[Published], diagnostics: Sequence[str], rule: str
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
    seeds = len(_seeds(groups))
    counts = any(len(group.done) < seeds for group in groups)
    texts = {key: text for axis in axes for key, text in _texts(axis, groups).items()}
    return _Layout(
        axes, short_names(axes), metrics, diagnostics, paper_metrics, fitting, epochs, counts, texts
    )


def _seeds(groups: Sequence[Group]) -> list[Scalar]:
    return sorted({trial.params.get(SEED) for group in groups for trial in group.trials}, key=rank)


def _texts(axis: str, groups: Sequence[Group]) -> dict[tuple[str, Scalar], str]:
    """Return a knob's values as cells: long numbers with as few digits as tell them apart."""
    values = list(dict.fromkeys(group.params[axis] for group in groups if axis in group.params))

    def text(value: Scalar, digits: int) -> str:
        exact = show(value)
        return f"{value:.{digits}g}" if isinstance(value, float) and len(exact) > SHORT else exact

    rounded = [[text(value, digits) for value in values] for digits in (3, 4, 5)]
    clear = (texts for texts in rounded if len(set(texts)) == len(values) and "e+" not in "".join(texts))
    texts = next(clear, [show(value) for value in values])
    return {(axis, value): text for value, text in zip(values, texts, strict=True)}


def _title(result: SweepResult, groups: list[Group], layout: _Layout) -> str:
    """Name the sweep and all that is equal in its rows: plugins, and the seeds where none lacks a result."""
    params = next((group.params for group in groups if not group.is_baseline), {})
    paths = ((kind, f"{kind}.name") for kind in PLUGINS)
    fixed = [(kind, params[name]) for kind, *more in paths for name in (kind, *more) if name in params]
    varied = [params[axis] for axis in layout.axes if axis in params]
    words = [f"no {kind}" if name == "none" else str(name) for kind, name in fixed if name not in varied]
    seeds = [show(seed) for seed in _seeds(groups)]
    counted = f"; seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" if seeds and not layout.counts else ""
    return f"sweep {result.sweep}: {', '.join(words)}{counted}"


def _columns(layout: _Layout, groups: list[Group], sorted_by: str | None) -> tuple[Column, ...]:
    texts = {axis for axis in layout.axes for g in groups if isinstance(g.params.get(axis), str)}

    def spare(name: str, rank_: int) -> int:
        return 0 if name == sorted_by else rank_

    return (
        *(
            Column(layout.names[axis], axis not in texts, knob=axis.removesuffix(".name") not in PLUGINS)
            for axis in layout.axes
        ),
        Column("status", numeric=False),
        *([Column("n")] if layout.counts else []),
        *([Column("epochs", spare=2)] if layout.epochs else []),
        *(Column(name, spare=spare(name, 0 if vital else 2)) for name, vital in layout.metrics.items()),
        *(Column(name, spare=spare(name, 3)) for name in layout.diagnostics),
        *(Column(f"paper {name}", spare=1) for name in layout.paper),
    )


def _row(group: Group, layout: _Layout, groups: list[Group], *, best: bool) -> Row:
    axes = [_knob(axis, group, layout, groups) for axis in layout.axes]
    stats = [group.stat(name) for name in (*layout.metrics, *layout.diagnostics)]
    fitting = [number.metrics for number in layout.numbers if _fits(number, group)]
    published = {name: value for metrics in reversed(fitting) for name, value in metrics.items()}
    paper = [rounded(published[name]) if name in published else EMPTY for name in layout.paper]
    numbers = [stat.text() if stat else EMPTY for stat in stats]
    counts = [str(len(group.done))] if layout.counts else []
    epochs = [EMPTY if group.epochs is None else str(group.epochs)] if layout.epochs else []
    cells = (*axes, _status(group, groups, best=best), *counts, *epochs, *numbers, *paper)
    return Row(cells, _kind(group, best))


def _knob(axis: str, group: Group, layout: _Layout, groups: Sequence[Group]) -> str:
    """Return a knob's cell; of a baseline that of its settings, where it tells them from those of others."""
    value = group.params.get(axis)
    if group.is_baseline and axis not in group.params:
        value = value_of(axis, group, groups)
    elif axis in group.params:
        return layout.texts.get((axis, value), EMPTY)
    return EMPTY if value is None else layout.texts.get((axis, value), EMPTY)


def _status(group: Group, groups: Sequence[Group], *, best: bool) -> str:
    """Say what the row is and what is wrong with it; plain "done" is said only of ordinary rows."""
    role = whose(group, groups) if group.is_baseline else "best" if best else ""
    state = "" if role and group.status == "done" else group.status
    oracle = "oracle" if group.oracle else ""
    return ", ".join(part for part in (role, state, oracle, "" if group.attack_took else NOT_TAKEN) if part)


def _kind(group: Group, best: bool) -> str:
    if best:
        return "best"
    if not group.attack_took:
        return "not_taken"
    if group.is_baseline:
        return "undefended"
    return "" if group.complete else "failed"


def _notes(result: SweepResult, groups: list[Group], layout: _Layout) -> list[str]:
    summary = result.summary()
    seeds = [show(seed) for seed in _seeds(groups)]
    notes = [
        f"stages: {summary['stages_computed']} computed, {summary['stages_shared']} shared; "
        f"{duration(summary['seconds_computed'])} spent, {duration(summary['seconds_saved'])} saved",
        *moved(summary),
    ]
    if len(seeds) > 1:
        counts = [f"n: how many of the seeds {', '.join(seeds)} have a result"] if layout.counts else []
        notes.append("; ".join([*counts, "mean ± standard deviation over seeds"]))
        if all(trial.params.get(DATA_SEED) is not None for trial in result.trials):
            notes.append("data_seed is set: the seeds of a row differ in training, on the same poisoned set")
    elif seeds:
        notes.append("one seed: no spread is known")
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


def size(count: int) -> str:
    """Return a number of bytes: "0.4 kB", "12.3 MB", "1.2 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1e3:.1f} kB"


def moved(summary: Mapping[str, Any]) -> list[str]:
    """Return a line about the bytes of results that stages wrote and read; none where nothing is known."""
    if not summary["bytes_written"]:
        return []
    names = ("bytes_written", "bytes_read", "bytes_fetched", "bytes_served")
    written, read, fetched, served = (size(summary[name]) for name in names)
    line = f"results: {written} written, {read} read of other trials"
    if summary["bytes_fetched"] or summary["bytes_served"]:
        line += f"; {fetched} fetched from the bucket, {served} from copies on the nodes"
    return [line]


# ------------------------------------------------------------------------------------------------ writers


def stacked(table: Table) -> Table:
    """Return a table with the heads of groups of columns as first lines of the columns' own."""
    if not any(column.group for column in table.columns):
        return table
    before, columns = "", []
    for column in table.columns:
        above = column.group if column.group != before else ""
        before = column.group
        columns.append(replace(column, name=f"{above}\n{column.name}", group=""))
    return replace(table, columns=tuple(columns))


def plain(table: Table, width: int | None = None) -> str:
    """Return a table as aligned text, fitted to `width` if given; a cell may have several lines."""
    table = stacked(table)
    table = table if width is None else fitted(table, width)
    each = widths(table)

    def aligned(cells: Sequence[str]) -> str:
        lines = itertools.zip_longest(*(cell.split("\n") for cell in cells), fillvalue="")
        return "\n".join(map(aligned_line, lines))

    def aligned_line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(cells, each, table.columns, strict=True)
        ]
        return (" " * GAP).join(padded).rstrip()

    rule = "-" * total(each)
    head = aligned([column.name for column in table.columns])
    body = [line for row in table.rows for line in ([rule] * row.starts + [aligned(row.cells)])]
    return "\n".join([*filter(None, [table.title]), rule, head, rule, *body, rule, *table.notes])


STYLES = {"best": "bold green", "failed": "red", "not_taken": "yellow", "undefended": "dim"}


def rich_table(table: Table, width: int) -> Lines:
    """Return a table for a terminal of `width` characters; colours: best row, failures, attacks not taken."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group as Lines
    from rich.table import Table as RichTable
    from rich.text import Text

    table = fitted(stacked(table), width)
    shown = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in table.columns:
        shown.add_column(Text(column.name), justify="right" if column.numeric else "left", no_wrap=True)
    for row in table.rows:
        if row.starts:
            shown.add_section()
        shown.add_row(*map(Text, row.cells), style=STYLES.get(row.kind))
    return Lines(Text(table.title, style="bold"), Text(), shown, Text(), Text("\n".join(table.notes)))


def markdown(table: Table) -> str:
    """Return a table as GitHub Markdown, the best row in bold."""
    dashes = ["---:" if column.numeric else "---" for column in table.columns]
    heads = [" ".join(filter(None, (column.group, column.name))) for column in table.columns]
    lines = [_pipes([head.replace("|", "\\|") for head in heads]), _pipes(dashes)]
    for row in table.rows:
        cells = [cell.replace("|", "\\|") for cell in row.cells]
        strong = [cell and (row.kind == "best" or i in row.bold) for i, cell in enumerate(cells)]
        lines.append(_pipes([f"**{c}**" if bold else c for c, bold in zip(cells, strong, strict=True)]))
    notes = "\n".join(f"- {note}" for note in table.notes)
    return f"## {table.title}\n\n" + "\n".join(lines) + f"\n\n{notes}\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plain_csv(table: Table) -> str:
    """Return a table's cells as CSV, one line a row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([[column.name for column in table.columns], *(row.cells for row in table.rows)])
    return out.getvalue()


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

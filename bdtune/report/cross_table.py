"""From a cross table to the neutral table that is written in any form, and to CSV with all digits."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from typing import TYPE_CHECKING

from bdtune.plugins.metric import METRICS
from bdtune.report import forms
from bdtune.report.cross import heads, to_json
from bdtune.report.fit import EMPTY, total, widths
from bdtune.report.groups import Stat
from bdtune.report.page.document import standalone
from bdtune.report.table import Column, Row, Table, stacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.report.cross import Cell, CrossTable


def neutral(table: CrossTable) -> Table:
    """Return the table with a head above the metrics of each column; published numbers stand beside ours."""
    compared = [
        any(line.cells[i].published is not None for line in table.lines) for i in range(len(heads(table)))
    ]
    columns = [Column(name, numeric=False) for name in table.row_names]
    for (column, metric), both in zip(heads(table), compared, strict=True):
        shown = f"{metric} %" if _percent(table, metric) else metric
        columns += [Column(name, group=column) for name in ([shown, "paper", "diff"] if both else [shown])]
    return Table(table.title, tuple(columns), tuple(_rows(table, compared)), table.notes)


def _rows(table: CrossTable, compared: Sequence[bool]) -> list[Row]:
    rows, before = [], ""
    parted = any(line.starts for line in table.lines)
    for line in table.lines:
        cells, bold = list(line.labels), set()
        if parted and cells[0] == before and not line.starts:
            cells[0] = ""
        for (_, metric), cell, both in zip(heads(table), line.cells, compared, strict=True):
            if cell.best:
                bold.add(len(cells))
            cells += _texts(cell, both, percent=_percent(table, metric))
        rows.append(Row(tuple(cells), bold=frozenset(bold), starts=line.starts))
        before = line.labels[0]
    return rows


def _texts(cell: Cell, both: bool, *, percent: bool) -> list[str]:
    """Return ours, and where some row of the column has a published number, that and the difference."""
    scale, digits = (100.0, 2) if percent else (1.0, 3)
    ours = cell.missing
    if cell.ours is not None:
        std = None if cell.ours.std is None else cell.ours.std * scale
        ours = Stat(cell.ours.mean * scale, std, cell.ours.n).text(digits)
        ours += "" if cell.took else "†"
        ours += "‡" if cell.partial else ""
    if not both:
        return [ours]
    published = EMPTY if cell.published is None else f"{cell.published * scale:.{digits}f}"
    difference = EMPTY if cell.difference is None else f"{cell.difference * scale:+.{digits}f}"
    return [ours, published, difference + "*" * cell.beyond_spread]


def _percent(table: CrossTable, metric: str) -> bool:
    """Whether a metric is written as a percentage: only the package's own are known to be fractions."""
    return table.percent and metric in METRICS.own


def blocks(table: Table, width: int) -> list[Table]:
    """Return a table as blocks of whole column groups that fit a width; the last one has the notes."""
    labels = [i for i, column in enumerate(table.columns) if not column.group and not column.numeric]
    groups = list(dict.fromkeys(column.group for column in table.columns if column.group))
    if total(widths(stacked(table))) <= width or len(groups) < 2:
        return [table]
    parts: list[list[str]] = [[]]
    for group in groups:
        if parts[-1] and total(widths(stacked(_only(table, labels, [*parts[-1], group])))) > width:
            parts.append([])
        parts[-1].append(group)
    found = [replace(_only(table, labels, part), title="", notes=()) for part in parts]
    found[0] = replace(found[0], title=table.title)
    found[-1] = replace(found[-1], notes=table.notes)
    return found


def _only(table: Table, labels: Sequence[int], groups: Sequence[str]) -> Table:
    """Return the columns of some groups, beside the row labels."""
    kept = [i for i, column in enumerate(table.columns) if i in labels or column.group in groups]
    rows = [
        replace(
            row,
            cells=tuple(row.cells[i] for i in kept),
            bold=frozenset(new for new, old in enumerate(kept) if old in row.bold),
        )
        for row in table.rows
    ]
    return replace(table, columns=tuple(table.columns[i] for i in kept), rows=tuple(rows))


def latex_text(table: CrossTable) -> str:
    """Return the table for LaTeX; one that is wide comes in blocks of columns, so that it can be read."""
    return forms.latex(*blocks(neutral(table), forms.LATEX_WIDTH))


def texts(table: CrossTable, stem: str) -> dict[str, str]:
    """Return the table in every form that is a file, by the file's name."""
    plain = neutral(table)
    return {
        f"{stem}.md": forms.text_of(plain, "markdown"),
        f"{stem}.csv": csv_text(table),
        f"{stem}.tex": latex_text(table),
        f"{stem}.html": standalone(plain.title, forms.text_of(plain, "html")),
    }


def csv_text(table: CrossTable) -> str:
    """Return one line for each metric of each row and column, with all digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = (
        "metric",
        "mean",
        "std",
        "n",
        "published",
        "difference",
        "beyond_spread",
        "attack_took",
        "missing",
    )
    column = " ".join(table.column_names) or "column"
    writer.writerow([*table.row_names, column, *numbers])
    for entry in to_json(table)["cells"]:
        values = [entry[name] for name in numbers]
        plain = ["" if v is None else str(v).lower() if isinstance(v, bool) else v for v in values]
        writer.writerow([*entry["row"].values(), entry["column"], *plain])
    return out.getvalue()

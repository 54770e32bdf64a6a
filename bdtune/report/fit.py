"""How a table is fitted to a width: status and the decisive numbers stay, whatever else must give way."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.report.table import Row, Table

GAP = 2
"""Characters between two columns."""
LONGEST_WORD = 30  # longer words are broken when their column is wrapped
LONGEST_PAIR = 16  # a knob's name and value of so many characters stay in one line
BREAKS = "._/+ "
"""Characters after which a head may go on in another line."""
TIED = "\N{NO-BREAK SPACE}"
EMPTY = "-"


def fitted(table: Table, width: int) -> Table:
    """Return the table in at most `width` characters, as far as its numbers allow.

    Texts are wrapped. Where that is not enough, heads take two lines; then spare columns are left out; then
    all knobs share one column, in which a row names only what differs from the most common values.
    """
    from bdtune.report.table import Column

    forms = [table, _short_heads(table)]
    lean = next((form for form in forms if _least(form) <= width), None)
    if lean is None:
        lean = _without_spares(forms[-1], width)
        if _least(lean) > width and any(column.knob for column in table.columns):
            lean = _without_spares(_folded(table, Column("setting", numeric=False)), width)
    return _wrapped(lean, width)


def widths(table: Table) -> list[int]:
    """Return each column's width in characters."""
    cells = [[column.name, *(row.cells[i] for row in table.rows)] for i, column in enumerate(table.columns)]
    lines = [[line for text in texts for line in text.split("\n")] for texts in cells]
    return [max(map(len, texts)) for texts in lines]


def total(each: Sequence[int]) -> int:
    """Return how wide columns of these widths are together."""
    return sum(each) + GAP * (len(each) - 1)


def _least(table: Table) -> int:
    return total(_least_widths(table))


def _least_widths(table: Table) -> list[int]:
    """Return how narrow each column may become: numbers keep theirs, texts that of their longest word."""
    each = widths(table)
    for i, column in enumerate(table.columns):
        if not column.numeric:
            words = [word for row in table.rows for word in re.split("[ \n]", row.cells[i])]
            longest = min(max(map(len, words), default=0), LONGEST_WORD)
            each[i] = max(longest, *map(len, column.name.split("\n")))
    return each


def _wrapped(table: Table, width: int) -> Table:
    """Wrap the widest columns of text as far as it takes, and the title and the notes."""
    each, least = widths(table), _least_widths(table)
    while total(each) > width:
        wide = [i for i in range(len(each)) if each[i] > least[i]]
        if not wide:
            break
        each[max(wide, key=lambda i: each[i])] -= 1
    rows = tuple(replace(row, cells=_wrapped_cells(row.cells, each)) for row in table.rows)
    notes = tuple(_lines(note, width) for note in table.notes)
    title = "\n".join(_lines(line, width) for line in table.title.split("\n"))
    return replace(table, title=title, rows=rows, notes=notes)


def _lines(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=False)).replace(TIED, " ")


def _wrapped_cells(cells: Sequence[str], each: Sequence[int]) -> tuple[str, ...]:
    return tuple(
        cell.replace(TIED, " ") if len(cell) <= width else _lines(cell, width)
        for cell, width in zip(cells, each, strict=True)
    )


def _short_heads(table: Table) -> Table:
    """Break heads that are wider than their numbers, after a character of `BREAKS`."""
    columns = []
    for i, column in enumerate(table.columns):
        cells = max((len(row.cells[i]) for row in table.rows), default=0)
        columns.append(replace(column, name=_broken(column.name, cells)))
    return replace(table, columns=tuple(columns))


def _broken(name: str, width: int) -> str:
    parts = re.split(rf"(?<=[{BREAKS}])", name)
    width = max(width, *map(len, parts))
    lines = [""]
    for part in parts:
        if len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def _whole(name: str) -> str:
    """Return a head in one line: a line that no other character broke was broken by a space."""
    return re.sub(rf"(?<=[{BREAKS}])\n", "", name).replace("\n", " ").strip()


def _without_spares(table: Table, width: int) -> Table:
    """Leave out columns, those of the highest `spare` first, until the rest fits."""
    missing: list[str] = []
    while _least(table) > width:
        last = max(range(len(table.columns)), key=lambda i: (table.columns[i].spare, i))
        if not table.columns[last].spare:
            break
        missing.append(_whole(table.columns[last].name))
        rows = tuple(replace(row, cells=_without(row.cells, last)) for row in table.rows)
        table = replace(table, columns=_without(table.columns, last), rows=rows)
    note = (f"no room for: {', '.join(reversed(missing))}; the report's files have all",) if missing else ()
    return replace(table, notes=(*table.notes, *note))


def _without(values: tuple[Any, ...], index: int) -> tuple[Any, ...]:
    return values[:index] + values[index + 1 :]


def _folded(table: Table, column: Any) -> Table:
    """Put all knobs into one column of text; values that most rows share are named once, below the title."""
    knobs = [i for i, each in enumerate(table.columns) if each.knob]
    base = _base(table.rows, knobs)

    def merged(values: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
        rest = [value for i, value in enumerate(values) if i not in knobs or i == knobs[0]]
        rest[knobs[0]] = own
        return tuple(rest)

    names = [each.name for each in table.columns]
    rows = tuple(
        replace(row, cells=merged(row.cells, _differences(row, names, knobs, base))) for row in table.rows
    )
    shared = ", ".join(f"{names[i]} {value}" for i, value in base.items())
    title = f"{table.title}\nbase: {shared}; a setting is what differs from it" if shared else table.title
    return replace(table, title=title, columns=merged(table.columns, column), rows=rows)


def _base(rows: Sequence[Row], knobs: Sequence[int]) -> dict[int, str]:
    """Return the values that more than half of the rows share."""
    settings = [row for row in rows if any(row.cells[i] != EMPTY for i in knobs)]
    base = {}
    for i in knobs:
        value, count = Counter(row.cells[i] for row in settings).most_common(1)[0]
        if value != EMPTY and count > len(settings) / 2:
            base[i] = value
    return base


def _differences(row: Row, names: Sequence[str], knobs: Sequence[int], base: dict[int, str]) -> str:
    own = [i for i in knobs if row.cells[i] != EMPTY]
    texts = [f"{names[i]} {row.cells[i]}" for i in own if row.cells[i] != base.get(i)]
    tied = [text.replace(" ", TIED) if len(text) <= LONGEST_PAIR else text for text in texts]
    return ", ".join(tied) or ("base" if own else EMPTY)

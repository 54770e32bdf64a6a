"""Tables written as text: for a terminal, Markdown, LaTeX and HTML."""

from __future__ import annotations

import itertools
from html import escape
from typing import TYPE_CHECKING, Literal

from bdtune.report.fit import EMPTY, total, widths
from bdtune.report.table import markdown, stacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bdtune.report.table import Column, Row, Table

Form = Literal["terminal", "markdown", "csv", "latex", "html"]
ENDINGS: dict[Form, str] = {"markdown": "md", "csv": "csv", "latex": "tex", "html": "html"}
MANY = 9
"""Numeric columns above which a LaTeX table counts as wide."""
LATEX_WIDTH = 90
"""Characters of a line that a page in one column has room for in small print."""
PAGE_ROWS, HEAD_ROWS = 58, 5
"""Rows that stand on a printed page besides the notes, and those that a block's head and rules take."""
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "[": "{[}", "±": r"$\pm$", "†": r"$^\dagger$",
    "‡": r"$^\ddagger$", "*": r"$^*$", "\n": " ",
}  # fmt: skip


def latex(*blocks: Table) -> str:
    """Return a table for LaTeX with the package booktabs; a wide one also needs graphicx.

    Several `blocks` of its columns stand below each other, on as many pages as they need; the first one has
    the title, the last one the notes.
    """
    many = sum(column.numeric for column in blocks[0].columns) > MANY
    wide = len(blocks) > 1 or many or total(widths(stacked(blocks[0]))) > LATEX_WIDTH
    packages = r"\usepackage{booktabs}" + (r", \usepackage{graphicx}" if wide else "")
    pages, title = _pages(blocks), latex_text(blocks[0].title)
    lines = [f"% needs {packages}"]
    for number, page in enumerate(pages, 1):
        caption = f"{title}, part {number} of {len(pages)}" if len(pages) > 1 else title
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        lines += [r"\footnotesize"] if wide else []
        for block in page:
            lines += [*_tabular(block, wide=wide), "", r"\medskip"]
        lines += [r"\footnotesize"] if page[-1].notes else []
        lines += [latex_text(note) + r"\\" for note in page[-1].notes[:-1]]
        lines += [*map(latex_text, page[-1].notes[-1:]), r"\end{table}"]
    return "\n".join([*lines, ""])


def _pages(blocks: Sequence[Table]) -> list[list[Table]]:
    """Return the blocks that share a page: whole ones, of at most `PAGE_ROWS` rows together."""
    pages: list[list[Table]] = []
    for block in blocks:
        if not pages or sum(len(each.rows) + HEAD_ROWS for each in [*pages[-1], block]) > PAGE_ROWS:
            pages.append([])
        pages[-1].append(block)
    return pages


def _tabular(table: Table, *, wide: bool) -> list[str]:
    """Return the lines of a tabular; a wide one is scaled down where it is wider than the page."""
    columns = "".join("r" if column.numeric else "l" for column in table.columns)
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *_latex_head(table), r"\midrule"]
    for row in table.rows:
        body += [r"\midrule"] if row.starts else []
        body.append(_latex_line([_latex_cell(row, i) for i in range(len(row.cells))]))
    body += [r"\bottomrule", r"\end{tabular}"]
    if not wide:
        return body
    fitted = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    return [fitted, *body[:-1], body[-1] + "}"]


def latex_text(text: str) -> str:
    """Return a text in which nothing is a command of LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_head(table: Table) -> Iterator[str]:
    """Yield the lines of the head: that of groups, with a rule below each, then the columns' own."""
    if any(column.group for column in table.columns):
        heads, rules, at = [], [], 1
        for group, members in groups_of(table.columns):
            text = latex_text(group)
            heads.append(rf"\multicolumn{{{members}}}{{c}}{{{text}}}" if group else " & " * (members - 1))
            rules += [rf"\cmidrule(lr){{{at}-{at + members - 1}}}"] if group else []
            at += members
        yield _latex_line(heads)
        yield "".join(rules)
    yield _latex_line([latex_text(column.name) for column in table.columns])


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(row: Row, index: int) -> str:
    text = latex_text(row.cells[index])
    text = "--" if row.cells[index] == EMPTY else text
    return rf"\textbf{{{text}}}" if text and (index in row.bold or row.kind == "best") else text


def groups_of(columns: Sequence[Column]) -> list[tuple[str, int]]:
    """Return the heads above the columns, each with how many it spans."""
    return [(group, len(list(own))) for group, own in itertools.groupby(column.group for column in columns)]


def html(table: Table) -> str:
    """Return a table as an HTML fragment in which no name is markup; the page gives it its looks."""
    head = []
    if any(column.group for column in table.columns):
        spans = "".join(
            f'<th colspan="{n}" scope="colgroup">{escape(g)}</th>' for g, n in groups_of(table.columns)
        )
        head.append(f"<tr class=groups>{spans}</tr>")
    names = "".join(f"<th{_number(column)}>{escape(column.name)}</th>" for column in table.columns)
    head.append(f"<tr>{names}</tr>")
    rows = "\n".join(_html_row(table, row) for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    below = f"\n<ul class=notes>{notes}</ul>" if notes else ""
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    return (
        f"<div class=scroll><table>{caption}<thead>{''.join(head)}</thead>\n"
        f"<tbody>\n{rows}\n</tbody></table></div>{below}\n"
    )


def _html_row(table: Table, row: Row) -> str:
    kinds = " ".join(filter(None, (row.kind, "starts" if row.starts else "")))
    cells = []
    for index, (text, column) in enumerate(zip(row.cells, table.columns, strict=True)):
        inner = escape(text)
        cells.append(f"<td{_number(column)}>{f'<b>{inner}</b>' if index in row.bold else inner}</td>")
    return f'<tr class="{kinds}">{"".join(cells)}</tr>' if kinds else f"<tr>{''.join(cells)}</tr>"


def _number(column: Column) -> str:
    return " class=n" if column.numeric else ""


def text_of(table: Table, form: Form) -> str:
    """Return a table in a form that knows neither a terminal's width nor all digits."""
    writers: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "html": html}
    return writers[form](table)

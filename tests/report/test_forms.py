"""The forms of a table: LaTeX that compiles, HTML without a stranger's markup, Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bdtune.report import forms
from bdtune.report.table import Column, Row, Table, markdown, plain

EVIL = "<script>alert('&')</script> a_b 50% $x$ {y} #1 ~ ^ \\input|"
TABLE = Table(
    f"sweep {EVIL}",
    (
        Column("attack", numeric=False),
        Column("acc", group="lfd"),
        Column("diff", group="lfd"),
        Column("acc", group="a_b"),
    ),
    (
        Row(("badnets", "0.926±0.002", "+0.008*", "0.900†"), bold=frozenset({1})),
        Row((EVIL, "not run", "-", "0.800‡"), starts=True),
    ),
    ("mean ± standard deviation", f"paper: {EVIL}"),
)


def latex_rows(text: str) -> list[list[str]]:
    """Return the cells of a tabular's lines: a reader that knows escapes, groups and spans, nothing else."""
    inner = text.split(r"\begin{tabular}")[1].split(r"\end{tabular}", maxsplit=1)[0]
    inner = re.sub(r"\A\{[lr]+\}", "", inner)
    inner = re.sub(r"\\(top|mid|bottom)rule|\\cmidrule\(lr\)\{\d+-\d+\}", "", inner)
    lines = [line for line in inner.split(r"\\") if line.strip()]
    return [re.split(r"(?<!\\)&", line) for line in lines]


def span(cell: str) -> int:
    found = re.match(r"\s*\\multicolumn\{(\d+)\}", cell)
    return int(found[1]) if found else 1


def test_every_line_of_latex_has_all_columns():
    text = forms.latex(TABLE)
    rows = latex_rows(text)
    assert [sum(map(span, row)) for row in rows] == [4, 4, 4, 4]
    assert r"\begin{tabular}{lrrr}" in text
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in text
    assert r"\textbf{0.926$\pm$0.002}" in text
    assert r"+0.008$^*$" in text
    assert text.count(r"\midrule") == 2  # below the head, and above a row that starts a part
    assert "--" in rows[3][2]


def test_a_list_in_the_first_cell_is_no_length_after_the_line_before():
    table = Table(
        "", (Column("beta", numeric=False),), (Row(("[0.5, 1.0]",)),), ("[a] note", 'and "another"')
    )
    text = forms.latex(table)
    assert not re.search(r"\\\s*[\[*]", text)
    assert "{[}0.5, 1.0]" in text
    assert '"' not in text  # the usual encoding of fonts has no straight quotes


def test_nothing_in_a_name_is_a_command_of_latex():
    text = forms.latex(TABLE)
    for name in (
        r"\textbackslash{}input",
        r"50\%",
        r"\$x\$",
        r"a\_b",
        r"\#1",
        r"\{y\}",
        r"\textless{}script",
    ):
        assert name in text
    assert balanced(text)
    assert not re.search(r"(?<!\\)[#%](?! needs)", text.replace("!}{%", ""))


def balanced(text: str) -> bool:
    """Return whether groups, environments and mathematics are closed in order."""
    plain_text = re.sub(r"\\[\\{}$&%#_]", "", text)
    depth, opened = 0, []
    for token in re.finditer(r"\\(begin|end)\{(\w+)\}|[{}]", plain_text):
        if token[1] == "begin":
            opened.append(token[2])
        elif token[1] == "end":
            assert opened.pop() == token[2]
        else:
            depth += 1 if token[0] == "{" else -1
            assert depth >= 0
    return depth == 0 and not opened and plain_text.count("$") % 2 == 0


def test_a_wide_table_is_scaled_to_the_page_and_names_its_packages():
    many = Table("t", tuple(Column(f"c{i}") for i in range(12)), (Row(("1",) * 12),))
    text = forms.latex(many)
    assert r"\resizebox{\ifdim\width>\linewidth\linewidth" in text
    assert "graphicx" in text
    assert balanced(text)
    assert "graphicx" not in forms.latex(TABLE)


class Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_a_name_that_is_html_is_a_text():
    read = Reader(forms.html(TABLE))
    assert "script" not in read.tags
    assert sum(EVIL in text for text in read.texts) == 3
    assert read.tags.count("tr") == 4
    assert read.tags.count("b") == 1


def test_markdown_joins_the_heads_and_escapes_pipes():
    lines = markdown(TABLE).splitlines()
    assert lines[2] == "| attack | lfd acc | lfd diff | a_b acc |"
    assert "**0.926±0.002**" in lines[4]
    assert "\\|" in lines[5]


def test_plain_text_has_the_heads_in_two_lines_and_a_rule_between_parts():
    lines = plain(TABLE).splitlines()
    assert lines[2].split() == ["lfd", "a_b"]
    assert lines[3].split() == ["attack", "acc", "diff", "acc"]
    assert sum(set(line) == {"-"} for line in lines) == 4


@pytest.mark.parametrize("form", ["markdown", "latex", "html"])
def test_each_form_has_every_cell(form):
    text = forms.text_of(TABLE, form)
    assert all(number in text for number in ("0.926", "0.900", "0.800", "not run"))


def test_blocks_of_a_latex_table_stand_below_each_other_on_as_many_pages_as_they_need():
    rows = tuple(Row((f"r{i}", "1")) for i in range(20))
    one = Table("A title", (Column("name", numeric=False), Column("a", group="g")), rows)
    last = replace(one, title="", notes=("a note",))
    text = forms.latex(one, replace(one, title=""), last)
    assert text.count(r"\begin{tabular}") == 3
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2  # 40 rows on a page, not 60
    assert r"\caption{A title, part 1 of 2}" in text
    assert text.index("part 2 of 2") < text.index("a note")
    assert text.count("a note") == 1
    both = forms.latex(replace(one, rows=rows[:5]), replace(last, rows=rows[:5]))
    assert (both.count(r"\begin{table}"), both.count(r"\begin{tabular}")) == (1, 2)
    assert r"\caption{A title}" in both

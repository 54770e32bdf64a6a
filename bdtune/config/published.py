"""Published numbers of a sweep: written in its file, or read from the CSV file of a paper's table.

    published:
      - params: {attack: badnets}                             written here
        metrics: {acc: 0.943}
        source: a paper, table 1
      - table: published/paper/table-2.csv                    a CSV file, from the folder of this one
        source: a paper, table 2
        rows: {defense: [abl, lfd]}                           only these rows; `without` leaves some out
        fixed: {defense.score: sce}                           settings of all rows
        params: {rate: attack.rate, attack: {CLB: label_consistent}}
        metrics: {acc: acc}

Under `params` a column is given the setting that its cells are values of, or a mapping: from a cell to the
value of the setting that is called like the column, or to a mapping of settings. `metrics` is read alike. An
empty cell gives nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bdtune.checking import check, show
from bdtune.config.csv_file import CsvFile, read_csv, value_of
from bdtune.config.search import known_path
from bdtune.config.sweep import Published
from bdtune.config.trial import PLUGIN_KINDS, to_params
from bdtune.errors import Problem, nearest
from bdtune.knobs import Knobs
from bdtune.plugins import registry
from bdtune.plugins.metric import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bdtune.config.csv_file import Line
    from bdtune.config.document import Document
    from bdtune.config.trial import TrialSpec

Rule = str | dict[str, Any]
"""What a column is: a name, or its cells -> a value of what is called like the column, or names -> values."""


class PublishedTable(Knobs):
    """A CSV file, and what its columns are to the sweep."""

    table: str = Field(min_length=1)
    source: str = Field(min_length=1)
    rows: dict[str, Any] = Field(default_factory=dict)
    """Column -> the cell, or a list of cells, that a row must have to be read."""
    without: dict[str, Any] = Field(default_factory=dict)
    """The same of rows that are left out."""
    fixed: dict[str, Any] = Field(default_factory=dict)
    params: dict[str, Rule] = Field(default_factory=dict)
    metrics: dict[str, Rule] = Field(min_length=1)

    def takes(self, line: Line) -> bool:
        """Return whether a row of the file is read."""
        return line.meets(self.rows) and not (self.without and line.meets(self.without))


@dataclass(frozen=True)
class Row:
    """The numbers of one row of a table, and the place of the row for messages."""

    number: Published
    where: str


def read_published(document: Document) -> tuple[list[Published], dict[str, list[Row]]]:
    """Return the published numbers of a document; and those of tables again, by the table's dotted path.

    What is wrong is noted in the document.
    """
    raw = document.sweep.get("published", [])
    if not isinstance(raw, list):
        document.wrong("published", "expected a list of values", show(raw))
        return [], {}
    numbers: list[Published] = []
    tables: dict[str, list[Row]] = {}
    for position, entry in enumerate(raw):
        at = f"published[{position}]"
        if isinstance(entry, dict) and "table" in entry:
            tables[at] = _Reader(document, at).table(entry)
            numbers += [row.number for row in tables[at]]
        else:
            numbers += _Reader(document, at).entry(entry)
    return numbers, tables


def check_rows(document: Document, tables: Mapping[str, Sequence[Row]], trials: Iterable[TrialSpec]) -> None:
    """Note rows of tables in the document whose settings no trial has."""
    settings = [to_params(trial).items() for trial in trials]
    for at, rows in tables.items():
        for number, where in ((row.number, row.where) for row in rows):
            if not any(number.params.items() <= each for each in settings):
                wanted = ", ".join(f"{path}={show(value)}" for path, value in number.params.items())
                expected = "expected a trial of the sweep for every row"
                hint = "Leave the row out with 'without'"
                document.report(Problem(at, expected, f"none with {wanted}", where, hint))


@dataclass(frozen=True)
class _Reader:
    """Reads one entry of `published`; notes what is wrong with it in the document."""

    document: Document
    at: str

    def entry(self, raw: Any) -> list[Published]:
        """Return an entry that is written in the sweep's file."""
        read, problems = check(Published, raw, "the published number")
        for problem in problems:
            self.document.report(problem.under(self.at))
        params, metrics = (_mapping(_mapping(raw).get(key)) for key in ("params", "metrics"))
        for path in params:
            known_path(self.document, f"{self.at}.params", path)
        for metric, value in metrics.items():
            self._check_metric(f"{self.at}.metrics.{metric}", metric, value)
        return [] if read is None else [read]

    def table(self, raw: dict[str, Any]) -> list[Row]:
        """Return the rows of a table that have numbers."""
        table, problems = check(PublishedTable, raw, "the published table")
        for problem in problems:
            self.document.report(problem.under(self.at))
        if table is None:
            return []
        file = read_csv(self.document.folder / table.table, table.table)
        for problem in file.problems:
            self.document.report(problem.under(f"{self.at}.table"))
        known = self._names_are_known(table)  # both are looked at, so that all problems are noted
        if file.problems or not self._columns_are_there(table, file) or not known:
            return []
        found = (self._row(table, line) for line in file.lines if table.takes(line))
        return [row for row in found if row is not None]

    def _names_are_known(self, table: PublishedTable) -> bool:
        """Note settings and metrics that there are none of."""
        paths = [
            *table.fixed,
            *(path for column, rule in table.params.items() for path in _named(column, rule)),
        ]
        metrics = [metric for column, rule in table.metrics.items() for metric in _named(column, rule)]
        known = [known_path(self.document, f"{self.at}.params", path) for path in paths]
        known += [self._check_metric(f"{self.at}.metrics.{each}", each) for each in metrics]
        return all(known)

    def _columns_are_there(self, table: PublishedTable, file: CsvFile) -> bool:
        """Note columns that the file does not have, and conditions that leave no row."""
        good = True
        for key in ("rows", "without", "params", "metrics"):
            for column in getattr(table, key).keys() - set(file.columns):
                expected = f"expected a column of {table.table}: {', '.join(file.columns)}"
                hint = nearest(column, file.columns)
                self.document.wrong(f"{self.at}.{key}.{column}", expected, show(column), hint)
                good = False
        if good and not any(map(table.takes, file.lines)):
            self.document.wrong(f"{self.at}.rows", f"expected rows that {table.table} has", "none")
        return good

    def _row(self, table: PublishedTable, line: Line) -> Row | None:
        """Return the numbers of a row; None where it has none, or where something in it is wrong."""
        metrics = self._mapped(f"{self.at}.metrics", table.metrics, line)
        params = self._mapped(f"{self.at}.params", table.params, line)
        if metrics is None or params is None or not metrics:
            return None
        for metric, value in metrics.items():
            if not self._check_metric(f"{self.at}.metrics.{metric}", metric, value, line.where):
                return None
        params = {path: _spelled(path, value) for path, value in {**table.fixed, **params}.items()}
        return Row(Published(params=params, metrics=metrics, source=table.source), line.where)

    def _mapped(self, at: str, rules: Mapping[str, Rule], line: Line) -> dict[str, Any] | None:
        """Return what the cells of a row stand for; None where a cell is none of those that a rule knows."""
        found: dict[str, Any] = {}
        for column, rule in rules.items():
            cell = line.cells[column]
            if not cell:
                continue
            if isinstance(rule, dict) and cell not in rule:
                expected = f"expected one of {', '.join(map(show, rule))}"
                hint = nearest(cell, rule) or "Leave the row out with 'without'"
                self.document.report(Problem(f"{at}.{column}", expected, show(cell), line.where, hint))
                return None
            value = rule[cell] if isinstance(rule, dict) else {rule: value_of(cell)}
            found |= value if isinstance(value, dict) else {column: value}
        return found

    def _check_metric(self, path: str, metric: str, value: Any = 0, where: str = "") -> bool:
        """Note a metric that there is none of, or a value that it cannot have; True where both are right."""
        if metric not in METRICS.names and "/" not in metric:
            expected = f"expected one of the metrics: {', '.join(METRICS.names)}"
            self.document.wrong(path, expected, show(metric), nearest(metric, METRICS.names))
            return False
        number = isinstance(value, int | float) and math.isfinite(value)
        if number and (metric not in METRICS.own or 0 <= value <= 1):
            return True
        if where or number:  # text in the sweep's own file was noted with its form
            expected = "expected a number from 0 to 1" if metric in METRICS.own else "expected a number"
            self.document.report(Problem(path, expected, show(value), where))
        return False


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _named(column: str, rule: Rule) -> Iterator[str]:
    """Yield the settings or metrics that a column's rule names."""
    if isinstance(rule, str):
        yield rule
    else:
        for value in rule.values():
            yield from value if isinstance(value, dict) else (column,)


def _spelled(path: str, value: Any) -> Any:
    """Return a setting with a plugin spelled as its file is."""
    if path not in PLUGIN_KINDS or not isinstance(value, str):
        return value
    return registry.canonical(PLUGIN_KINDS[path], value)

"""Every number of the papers' tables is shown beside a trial, or is left out for a written reason."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from bdtune.config.csv_file import Line
from bdtune.config.load import find, load_sweep, search_spaces
from bdtune.config.published import PublishedTable
from bdtune.config.yaml_file import read_yaml

SPACES = [space.name for space in search_spaces() if space.name.startswith("paper/")]
FOLDER = Path(find(SPACES[0])).parent / "published"
TABLES = sorted(file.relative_to(FOLDER).as_posix() for file in FOLDER.glob("*/*.csv"))
DESCRIBED = {
    "dataset", "model", "attack", "poison_rate", "rate_basis", "target", "label_type", "defense",
    "note", "trigger", "frr", "epsilon", "steps", "score", "threshold", "stage_3", "epsilon_AT",
    "step_AT", "steps_AT", "subset", "split_by", "attack.b", "attack.cover_rate", "gpu", "measured_by",
    "ssl_epochs", "stage", "classifier", "target_class", "alpha_C", "alpha_P", "beta_D", "beta_ND",
    "beta_unclear", "lambda", "alpha", "beta", "teacher", "isolation_rate", "epochs", "data", "stamped",
    "step",
}  # fmt: skip
VALUES = {
    "acc", "asr", "robust_acc", "gamma", "rho_vul", "seconds", "relabel_acc", "detected",
    "detected_target", "false_alarms", "verdict", "far", "channels", "height", "width", "classes",
    "train_images", "test_images", "acc_drop_below", "altered_share", "gamma_min", "benign_kept_min",
    "asr_above", "acc_drop", "far_below", "anomaly_index", "outlier_probability",
}  # fmt: skip


class Cell(NamedTuple):
    """A cell with a value: its table, its line there, and its column."""

    table: str
    line: int
    column: str


def rows(table: str) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table, each with its line; no cell has a line break."""
    with (FOLDER / table).open(encoding="utf-8", newline="") as file:
        return list(enumerate(csv.DictReader(file), 2))


def cells(table: str) -> dict[Cell, str]:
    """Return the values of a table."""
    return {
        Cell(table, line, column): cell
        for line, row in rows(table)
        for column, cell in row.items()
        if column in VALUES and cell
    }


def entries(space: str) -> list[PublishedTable]:
    """Return the tables that a space names."""
    written = read_yaml(find(space)).data.get("published", [])
    return [PublishedTable.model_validate(entry) for entry in written]


def taken(entry: PublishedTable) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a table that an entry takes and that have a number."""
    table = entry.table.removeprefix("published/")
    chosen = [(line, row) for line, row in rows(table) if entry.takes(Line(row, ""))]
    return [(line, row) for line, row in chosen if any(row[column] for column in entry.metrics)]


@cache
def shown() -> frozenset[Cell]:
    """Return the values that some space shows."""
    return frozenset(
        Cell(entry.table.removeprefix("published/"), line, column)
        for space in SPACES
        for entry in entries(space)
        for line, row in taken(entry)
        for column in entry.metrics
        if row[column]
    )


@cache
def left_out() -> dict[str, frozenset[Cell]]:
    """Return the values that are left out, by the line that says so."""
    found = {}
    for number, reason in rows("left_out.csv"):
        wanted = dict(pair.split("=") for pair in reason["rows"].split(";") if pair)
        lines = {line for line, row in rows(reason["table"]) if wanted.items() <= row.items()}
        columns = {reason["column"]} if reason["column"] else VALUES
        found[f"left_out.csv:{number}: {reason['reason']}"] = frozenset(
            cell for cell in cells(reason["table"]) if cell.line in lines and cell.column in columns
        )
    return found


@pytest.mark.parametrize("table", TABLES)
def test_every_value_is_shown_or_left_out_for_a_reason(table: str) -> None:
    known = set(rows(table)[0][1])
    assert known <= DESCRIBED | VALUES, f"neither a description nor a value: {known - DESCRIBED - VALUES}"
    omitted = frozenset().union(*left_out().values())
    assert sorted(cells(table).keys() - shown() - omitted) == []


def test_what_is_left_out_is_there_and_not_shown() -> None:
    for reason, found in left_out().items():
        assert found, reason
        assert not found & shown(), reason


@pytest.mark.parametrize("space", SPACES)
def test_a_space_shows_the_values_of_its_tables(space: str) -> None:
    expected = []
    for entry in entries(space):
        for _, row in taken(entry):
            numbers = {}
            for column, rule in entry.metrics.items():
                if row[column]:
                    numbers |= rule[row[column]] if isinstance(rule, dict) else {rule: float(row[column])}
            expected.append((numbers, entry.source))
    found = [(dict(each.metrics), each.source) for each in load_sweep(space, check_data=False).published]
    assert found == expected

"""Reading CSV files: cells as text, each row with its line."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bdtune.config.yaml_file import MAX_BYTES
from bdtune.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@dataclass(frozen=True)
class Line:
    """One row: its cells by column, and its place for messages."""

    cells: Mapping[str, str]
    where: str

    def meets(self, condition: Mapping[str, Any]) -> bool:
        """Return whether the cells of all columns of a condition are as it says; a list means any of them."""
        return all(
            value_of(self.cells[column]) in (wanted if isinstance(wanted, list) else [wanted])
            for column, wanted in condition.items()
        )


@dataclass(frozen=True)
class CsvFile:
    """What a CSV file with a head holds, and what is wrong with it."""

    columns: tuple[str, ...] = ()
    lines: tuple[Line, ...] = ()
    problems: list[Problem] = field(default_factory=list)


def value_of(cell: str) -> int | float | str:
    """Return a cell as the finite number that it is, else as its text."""
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        if math.isfinite(value):
            return value
    return cell


def read_csv(file: Path, name: str) -> CsvFile:
    """Read one file; everything that is wrong with it is in `problems`, with `name` as its name."""
    try:
        if file.stat().st_size > MAX_BYTES:
            return _failed(f"expected a file of at most {MAX_BYTES:,} bytes", name)
        with file.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True)
            head = tuple(next(reader, ()))
            rows = [(reader.line_num, row) for row in reader if row]
    except UnicodeDecodeError:
        return _failed("expected text in UTF-8", name)
    except csv.Error as error:
        return _failed("expected a CSV file", f"{name}: {error}")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", "") or "no such file"
        return _failed(
            "expected a CSV file, found from the folder of the sweep's file", f"{name}: {reason.lower()}"
        )
    twice = [column for column, count in Counter(head).items() if count > 1 or not column]
    if not head or twice:
        return _failed(
            "expected a head that names each column once",
            f"{', '.join(map(repr, twice)) or 'none'} in {name}",
        )
    problems = [
        Problem("", f"expected {len(head)} cells in each row", str(len(row)), f"{name}:{line}")
        for line, row in rows
        if len(row) != len(head)
    ]
    lines = tuple(Line(dict(zip(head, row, strict=False)), f"{name}:{line}") for line, row in rows)
    return CsvFile(head, lines, problems)


def _failed(expected: str, got: str) -> CsvFile:
    return CsvFile(problems=[Problem("", expected, got)])

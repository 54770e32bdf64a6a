"""The files that a report leaves beside its sweep."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from typing import TYPE_CHECKING, TextIO

from bdtune.engine.files import replace_file
from bdtune.errors import UserError
from bdtune.report import comparison, cross_table, table
from bdtune.report.seconds import with_seconds
from bdtune.trials.results import SweepResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bdtune.config.sweep import Published
    from bdtune.report.cross import CrossTable
    from bdtune.report.table import Table
    from bdtune.trials.results import TrialResult

TERMINAL_ROWS = 60  # what a person scrolls through; the files have every row
PLAIN_WIDTH = 120  # characters of a line where there is no terminal to ask

log = logging.getLogger(__name__)


def write(
    folder: Path,
    result: SweepResult,
    *,
    paper: Sequence[Published] = (),
    notes: Sequence[str] = (),
    diagnostics: Sequence[str] = (),
    shaped: CrossTable | None = None,
    figure: bool = True,
) -> list[Path]:
    """Write `sweep.json`, `report.md`, `report.csv`, `report.png` into a sweep's folder; return the paths.

    A `shaped` table is written as `table.md`, `.csv`, `.tex` and `.html`. Each file is replaced atomically.
    There is no picture where no trial has numbers.
    """
    full = table.build(result, paper=paper, notes=notes, diagnostics=diagnostics)
    texts = {
        "sweep.json": json.dumps(result.to_json(), allow_nan=False),
        "report.md": "\n\n".join(map(table.markdown, [full, *comparison.of_sweep(result).values()])),
        "report.csv": table.csv_text(with_seconds(result, paper)),
        **(cross_table.texts(shaped, "table") if shaped else {}),
    }
    for name, text in texts.items():
        replace_file(folder / name, text.encode())
    paths = [folder / name for name in texts]
    if figure:
        from bdtune.report.figure import overview

        picture = overview(result, folder / "report.png")
        paths += [picture] if picture else []
    return paths


def read(folder: Path) -> SweepResult:
    """Return the sweep that `write` left in a folder; raises `UserError` where there is none."""
    file = folder / "sweep.json"
    try:
        return SweepResult.from_json(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"no report in {folder}; run the sweep first") from None
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def reported(folder: Path) -> tuple[TrialResult, ...]:
    """Return the trials of the last report in a folder; none, with a warning, where it cannot be read."""
    if not (folder / "sweep.json").exists():
        return ()
    try:
        return read(folder).trials
    except UserError as error:
        log.warning("trials of the last report are left out: %s", error)
        return ()


def width() -> int:
    """Return the characters of a line: COLUMNS, else the terminal's, else `PLAIN_WIDTH`."""
    return shutil.get_terminal_size((PLAIN_WIDTH, 0)).columns


def show(shown: Table, stream: TextIO | None = None) -> None:
    """Print a table: with colours on a terminal, as plain aligned text elsewhere; long texts are wrapped."""
    stream = stream or sys.stdout
    if not stream.isatty():
        print(table.plain(shown, width()), file=stream)
        return
    from rich.console import Console

    console = Console(file=stream)
    console.print(table.rich_table(shown, console.width))

"""What all verbs of the command line share: options, and printing a result as a table or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bdtune.report.table import Table

Out = Annotated[
    Path | None, typer.Option("--out", help="Run directory (default: BDTUNE_HOME, or bdtune-runs).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def show_result(value: Any, table: Table | None, as_json: bool) -> None:
    """Print `value` as JSON or, where that was not asked for, the table."""
    if as_json:
        show_json(value)
    elif table is not None:
        show_table(table)


def show_json(value: Any) -> None:
    """Print plain values on standard output."""
    print(json.dumps(value, indent=1, default=str))


def show_table(table: Table) -> None:
    """Print a table on standard output."""
    from bdtune.report.files import show

    show(table)

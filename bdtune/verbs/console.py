"""What all verbs of the command line share: options, and printing a result as a table or as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.report.table import Table

Out = Annotated[
    Path | None, typer.Option("--out", help="Run directory (default: BDTUNE_HOME, or bdtune-runs).")
]
StoreAt = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PLACE",
        help="Folder, or bucket as s3://NAME/PREFIX (default: the sweep's, the last one, or in --out).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]


@contextlib.contextmanager
def results_only_on_stdout() -> Iterator[None]:
    """Send what anything else prints on standard output meanwhile, Ray's daemons too, to standard error."""
    try:
        out, errors = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, ValueError):  # a notebook's, or a test's, that is no file
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    sys.stdout.flush()
    kept = os.dup(out)
    os.dup2(errors, out)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, out)
        os.close(kept)


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

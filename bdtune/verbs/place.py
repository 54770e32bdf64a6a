"""Where a run's files are."""

from __future__ import annotations

import os
from pathlib import Path

from bdtune.errors import Problem, UserError
from bdtune.knobs import absolute


def run_directory(out: Path | None = None, *, write: bool = True) -> Path:
    """Return the run directory: the one given, else BDTUNE_HOME, else bdtune-runs in this folder.

    Raises `UserError` when a file stands in its way or, to `write` there, it can neither be made nor written.
    """
    path = folder("--out", out or Path(os.environ.get("BDTUNE_HOME") or "bdtune-runs"))
    existing = next(each for each in (path, *path.parents) if each.exists())
    if not existing.is_dir() or (write and not os.access(existing, os.W_OK | os.X_OK)):
        what = "cannot be written" if existing.is_dir() else "is a file"
        raise UserError(
            Problem("--out", "expected a folder that can be written", f"{path}: {existing} {what}")
        )
    return path


def folder(option: str, path: Path) -> Path:
    """Return a path from the root; raises `UserError` about the option for one that no folder can have."""
    try:
        found = absolute(path)
    except ValueError as error:
        raise UserError(Problem(option, str(error))) from None
    assert found is not None
    return found

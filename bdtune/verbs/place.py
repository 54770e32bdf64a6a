"""Where a run's files are."""

from __future__ import annotations

import os
from pathlib import Path

from bdtune.errors import Problem, UserError


def run_directory(out: Path | None = None) -> Path:
    """Return the run directory: the one given, else BDTUNE_HOME, else bdtune-runs in this folder.

    Raises `UserError` when a file stands in its way or it can neither be made nor written.
    """
    path = (out or Path(os.environ.get("BDTUNE_HOME") or "bdtune-runs")).expanduser().absolute()
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        what = "cannot be written" if existing.is_dir() else "is a file"
        raise UserError(
            Problem("--out", "expected a folder that can be written", f"{path}: {existing} {what}")
        )
    return path

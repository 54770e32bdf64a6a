"""Where a run's files are."""

from __future__ import annotations

import os
from pathlib import Path


def run_directory(out: Path | None = None) -> Path:
    """Return the run directory: the one given, else BDTUNE_HOME, else bdtune-runs in this folder."""
    return (out or Path(os.environ.get("BDTUNE_HOME") or "bdtune-runs")).expanduser().absolute()

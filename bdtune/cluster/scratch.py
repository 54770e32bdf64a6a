"""Scratch folders of sweeps, and what a killed start left: its folder and Ray's processes."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

import psutil

from bdtune.engine.owner import beside, clear_unfinished, is_gone, me

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWNER = "owner.json"
OLD_S = 7 * 24 * 3600.0
"""After so long a scratch folder of another machine belongs to a driver that was killed."""
SCRATCH = "tune"


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Make a scratch folder in a sweep's folder for this start alone: another may run the same sweep."""
    own = folder / SCRATCH / uuid.uuid4().hex
    making = beside(own)
    making.mkdir(parents=True)
    note_processes(making)
    making.rename(own)  # it never lacks its owner
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def note_processes(own: Path) -> None:
    """Write down whose folder it is, and the processes that this one has started so far: Ray's daemons."""
    started = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            started.append({**me(), "pid": process.pid, "started": process.create_time()})
    (own / OWNER).write_text(json.dumps({"owner": me(), "processes": started}))


def clear_left(sweeps: Path) -> None:
    """Remove what killed starts of any sweep left on this machine; end the processes that outlived them."""
    for old in sweeps.glob(f"*/{SCRATCH}/*"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            note = _note(old)
            if note is None or is_gone(note["owner"]):
                for process in note["processes"] if note else ():
                    _end(process)
                shutil.rmtree(old, ignore_errors=True)
    clear_unfinished((sweeps, *sweeps.glob("*"), *sweeps.glob("*/*")))


def _note(folder: Path) -> dict[str, Any] | None:
    """Return whose a folder is; None where nobody says so, and it is old. Raises `KeyError` if it is not."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        found: dict[str, Any] = json.loads((folder / OWNER).read_text())
        return found
    if time.time() - folder.stat().st_mtime > OLD_S:
        return None
    raise KeyError(OWNER)


def _end(process: dict[str, Any]) -> None:
    """End a process, if it is the one that was noted."""
    with contextlib.suppress(psutil.NoSuchProcess):
        if not is_gone(process) and process["host"] == me()["host"]:
            psutil.Process(process["pid"]).kill()

"""Who holds a file, and whether that process is gone: for leases, pins and what is being written."""

from __future__ import annotations

import os
import re
import shutil
import socket
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_MARK = re.compile(r"\.(?P<pid>\d+)-[0-9a-f]{12}@(?P<host>.+)$")


def me() -> dict[str, Any]:
    """Return this process as host, pid and start time, for a file that it holds."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _started(pid)}


@lru_cache(maxsize=1)
def _started(pid: int) -> float:
    """Return when a process started, looked up once: a lease is taken for each derived stage."""
    return float(psutil.Process(pid).create_time())


def is_gone(holder: Mapping[str, Any]) -> bool:
    """Return whether a process of this host has ended; of other hosts nothing is known."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        process = psutil.Process(int(holder["pid"]))
        reused = "started" in holder and abs(process.create_time() - holder["started"]) >= 1.0
        return bool(reused or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def is_forerunner(holder: Mapping[str, Any], task: str) -> bool:
    """Return whether another process held something for this very task: its driver gave it up before.

    Processes of one task follow one another, as on other nodes when theirs is gone.
    """
    mine = me()
    other = any(holder.get(part) != mine[part] for part in ("host", "pid"))
    return other and holder.get("task", "") == task != ""


def beside(path: Path) -> Path:
    """Return a new hidden name beside `path`, for what this process is writing; it says whose it is."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:12]}@{socket.gethostname()}")


def clear_unfinished(folders: Iterable[Path]) -> int:
    """Remove what processes of this host were writing in some folders when they ended; returns how many."""
    removed = 0
    for folder in folders:
        for path in folder.glob(".*@*") if folder.is_dir() else ():
            mark = _MARK.search(path.name)
            if mark is None or not is_gone({"host": mark["host"], "pid": mark["pid"]}):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            removed += 1
    return removed

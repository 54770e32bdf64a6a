"""Small atomic file operations that the store is made of."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bdtune.engine.disk import room
from bdtune.engine.owner import beside

if TYPE_CHECKING:
    from pathlib import Path

    from filelock import UnixFileLock


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and force it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_plain(path: Path, content: bytes) -> None:
    """Write a file and leave it to the system when it reaches the disk."""
    path.write_bytes(content)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with room(path, len(content)):
            write_synced(temporary, content)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append one short line; concurrent appenders do not mix theirs, and a torn one before it stays alone."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # its writer was killed
        os.write(descriptor, ("\n" * torn + line + "\n").encode())
    finally:
        os.close(descriptor)


def file_lock(path: Path) -> UnixFileLock:
    """Return a lock between processes, which the kernel releases when its holder dies.

    Any thread of the process may release it. Raises `OSError` where the file system has no locks: a lock that
    outlives its holder would stop the next one.
    """
    from filelock import UnixFileLock

    return UnixFileLock(path, thread_local=False, fallback_to_soft=False)

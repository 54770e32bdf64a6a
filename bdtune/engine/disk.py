"""A full disk is nobody's failure: it ends a sweep with a word, and the same command goes on with room."""

from __future__ import annotations

import contextlib
import errno
import shutil
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from bdtune.errors import OutageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(OutageError):
    """There is no room for what is to be written."""


@contextlib.contextmanager
def room(path: Path, size: int | None = None) -> Iterator[None]:
    """Raise `DiskFullError` with the disk, and the bytes that are needed, where the block finds no room."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise DiskFullError(full_disk(path, size)) from error
        raise


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk, or the user's share of it, is full."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, SafetensorError) and any(f"os error {code}" in str(error) for code in FULL)


def full_disk(path: Path, size: int | None = None) -> str:
    """Return which disk is full and what is needed, in words."""
    place = next((each for each in (path, *path.parents) if each.exists()), path)
    needed = f", {_mib(size)} are needed" if size is not None else ""
    with contextlib.suppress(OSError):
        usage = shutil.disk_usage(place)
        return f"no room for {path}: {_mib(usage.free)} of {_mib(usage.total)} are free{needed}"
    return f"no room for {path}{needed}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"

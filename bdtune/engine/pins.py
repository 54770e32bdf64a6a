"""Pins: the keys that running sweeps use, so that `cache gc` leaves them alone."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from typing import TYPE_CHECKING

from bdtune.engine.files import replace_file
from bdtune.engine.owner import is_gone, me

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STALE_S = 7 * 24 * 3600.0
"""Pins of other hosts are believed for so long: gc is rare, a sweep's work is dear."""


class Pins:
    """The pins of one store; each sweep that runs has a file of the keys it uses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: Path | None = None
        self._seen: dict[str, None] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[str]:
        """Keep a file of pins while the block runs and give its name; keys added before are pinned too."""
        self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        lines = "".join(json.dumps(line) + "\n" for line in (me(), *self._seen))
        replace_file(self._file, lines.encode())  # a file that does not say whose it is would stay for ever
        try:
            yield self._file.name
        finally:
            self._file.unlink(missing_ok=True)
            self._file = None

    def has(self, name: str) -> bool:
        """Return whether a file of pins has this name."""
        return (self.folder / name).exists()

    def add(self, key: str) -> None:
        """Pin a key, as soon as pins are held."""
        self._seen[key] = None
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(f"{json.dumps(key)}\n")

    def keys(self, *, own: bool = True) -> set[str]:
        """Return the keys that running sweeps use; without its `own`, those of others.

        Files of sweeps that are gone are removed.
        """
        found: set[str] = set()
        for file in self.folder.glob("*.jsonl"):
            if file == self._file and not own:
                continue
            with contextlib.suppress(OSError, ValueError):
                first, *lines = file.read_text().split("\n")
                if is_left(json.loads(first), time.time() - file.stat().st_mtime):
                    file.unlink(missing_ok=True)
                else:
                    found.update(json.loads(line) for line in lines[:-1])  # the last has no end yet
        return found


def is_left(holder: dict[str, str | int], age_s: float) -> bool:
    """Return whether pins are those of a sweep that is gone; `age_s`: how long ago it pinned a key."""
    here = holder["host"] == socket.gethostname()
    return is_gone(holder) if here else age_s > STALE_S

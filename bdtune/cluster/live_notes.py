"""What running trials say of their progress: one small file each, replaced as they go on."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class LiveNotes:
    """The notes in a folder, each read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int]] = {}

    def new(self) -> Iterator[dict[str, Any]]:
        """Yield the notes that were left since the last call; a trial's latest stands for those before."""
        now: dict[str, tuple[int, int]] = {}
        with os.scandir(self.folder) as found:
            for entry in found:
                with suppress(FileNotFoundError):  # its trial ended meanwhile
                    if entry.name.endswith(".json"):
                        now[entry.name] = (entry.stat().st_ino, entry.stat().st_mtime_ns)
        changed = [name for name, state in now.items() if self._seen.get(name) != state]
        self._seen = now
        for name in changed:
            with suppress(OSError, ValueError):
                yield json.loads((self.folder / name).read_text())

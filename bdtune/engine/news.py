"""What any process has published lately in a folder: the keys at the end of its log of costs.

A driver that holds thousands of trials learns from it which of its keys are there, and need not ask for each.
A bucket's are in its `PublicationLog`.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class News:
    """The keys that are published from now on; a line that a killed writer tore is left out."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._read = log.stat().st_size if log.exists() else 0

    def take(self) -> set[str]:
        """Return the keys that were published since the last call, by this process or any other."""
        try:
            with self._log.open("rb", buffering=0) as file:  # opened anew: a network file system looks again
                file.seek(self._read)
                content = file.read()
        except FileNotFoundError:
            return set()
        whole = content.rfind(b"\n") + 1
        self._read += whole
        found = set()
        for line in content[:whole].splitlines():
            with suppress(ValueError, TypeError, KeyError):
                found.add(json.loads(line)["key"])
        return found

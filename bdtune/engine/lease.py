"""Leases: at most one process works on a key. They only save work; correctness never rests on them.

A lease is a file that its holder touches every few seconds. It is stale when its holder's process is gone
(same host) or it has not been touched for a while (any host), measured on the file system's own clock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from bdtune.engine.owner import beside, is_forerunner, is_gone, me

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEARTBEAT_S = 5.0
STALE_S = 45.0

log = logging.getLogger(__name__)


class Leases:
    """The leases of one store, and the thread that keeps this process's own alive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.task = ""
        self._held: set[Path] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def try_hold(self, key: str) -> Iterator[bool]:
        """Hold the lease of `key` inside the block; yields False when somebody alive holds it."""
        path = self.folder / key
        if not self._create(path) and not (self._remove_if_stale(path) and self._create(path)):
            yield False
            return
        try:
            yield True
        finally:
            with self._lock:
                self._held.discard(path)
            path.unlink(missing_ok=True)

    def held_by_other(self, key: str) -> bool:
        """Return whether a living process other than this one holds the lease."""
        path = self.folder / key
        return path not in self._held and path.exists() and not self._is_stale(path)

    def clear_stale(self) -> None:
        """Remove the leases of processes that are gone."""
        for path in self.folder.glob("[!.]*"):
            self._remove_if_stale(path)

    def _create(self, path: Path) -> bool:
        temporary = beside(path)
        temporary.write_text(json.dumps({**me(), "task": self.task}))
        try:
            os.link(temporary, path)  # fails when taken, and the content is never seen half written
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        with self._lock:
            self._held.add(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, daemon=True, name="bdtune-leases")
                self._thread.start()
        return True

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            with self._lock:
                held = list(self._held)
            for path in held:
                with contextlib.suppress(FileNotFoundError):
                    os.utime(path)

    def _is_stale(self, path: Path) -> bool:
        try:
            holder = json.loads(path.read_text())
            age = self._now() - path.stat().st_mtime
        except (FileNotFoundError, ValueError):  # torn by a power failure: a kill leaves it whole
            return True
        if age > STALE_S:
            return True
        return is_gone(holder) or is_forerunner(holder, self.task)

    def _remove_if_stale(self, path: Path) -> bool:
        if not self._is_stale(path):
            return False
        # Of several that find it stale, the one whose rename succeeds takes it away.
        grave = beside(path)
        with contextlib.suppress(FileNotFoundError):
            path.rename(grave)
            grave.unlink()
            log.info("took over the lease %s of a process that is gone", path.name)
        return True

    def _now(self) -> float:
        """The file system's clock: hosts that share a store may disagree about the time."""
        probe = beside(self.folder / "now")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()

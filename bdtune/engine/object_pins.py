"""Pins as objects: as `bdtune.engine.pins`. A sweep writes what it has come to use since the last time."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import uuid
from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bdtune.engine.owner import me
from bdtune.engine.pins import is_left
from bdtune.errors import OutageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.objects import Listed, Objects

FOLDER = "pins"
FLUSH_S = 1.0
"""Between a key's first use and its pin at most; until then gc may take it, and it is computed again."""

log = logging.getLogger(__name__)


class ObjectPins:
    """The pins of one store in a bucket."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._seen: dict[str, None] = {}
        self._written = 0
        self._parts: list[str] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[str]:
        """Keep pins while the block runs and give their name; keys added before are pinned too."""
        own, over = f"{FOLDER}/{uuid.uuid4().hex}", threading.Event()
        self._written = 0
        self._write(own)
        thread = threading.Thread(target=self._keep, args=(own, over), name="bdtune-pins", daemon=True)
        thread.start()
        try:
            yield own
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OutageError):
                for name in self._parts:
                    self.objects.delete(name)
            self._parts = []

    def has(self, name: str) -> bool:
        """Return whether there are pins of this name."""
        return next(iter(self.objects.list(name)), None) is not None

    def add(self, key: str) -> None:
        """Pin a key, as soon as pins are held."""
        self._seen[key] = None

    def keys(self, *, own: bool = True) -> set[str]:
        """Return the keys that running sweeps use; without its `own`, those of others.

        Pins of sweeps that are gone are removed.
        """
        sweeps: dict[str, list[Listed]] = defaultdict(list)
        mine = () if own else set(self._parts)
        for listed in self.objects.list(FOLDER):
            if listed.name in mine:
                continue
            sweeps[listed.name.rpartition("/")[0]].append(listed)
        found: set[str] = set()
        for parts in sweeps.values():
            found |= self._of_sweep(parts)
        return found

    def _of_sweep(self, parts: list[Listed]) -> set[str]:
        """Return what a sweep pins; nothing, and its parts are removed, when it is gone."""
        age_s = (datetime.now(UTC) - max(part.modified for part in parts)).total_seconds()
        found: set[str] = set()
        for part in parts:
            content = self.objects.get(part.name)
            if content is None:  # the sweep has just ended
                continue
            pins = json.loads(content.content)
            if is_left(pins["holder"], age_s):
                self.objects.delete(part.name)
            else:
                found.update(pins["keys"])
        return found

    def _keep(self, own: str, over: threading.Event) -> None:
        while not over.wait(FLUSH_S):
            try:
                if len(self._seen) > self._written:
                    self._write(own)
            except OutageError as error:
                log.warning("what the sweep uses cannot be pinned for now: %s", error)

    def _write(self, own: str) -> None:
        """Write the keys that are in none of the sweep's objects yet as one more."""
        seen = list(self._seen)
        name = f"{own}/{len(self._parts)}"
        self.objects.put(name, json.dumps({"holder": me(), "keys": seen[self._written :]}).encode())
        self._parts.append(name)
        self._written = len(seen)

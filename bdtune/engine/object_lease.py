"""Leases as objects: as `bdtune.engine.lease`, on a server without locks, links or a clock to trust.

The holder writes its lease anew every few seconds, each time with another count and only over its own last
content (If-Match). An observer finds it stale when the tag has not changed for a while by the observer's own
clock, or its holder's process is gone: as seen on this host, or as the driver knows that started another
process for the same task. Of several observers one replaces it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.engine.owner import is_forerunner, is_gone, me
from bdtune.errors import OutageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bdtune.engine.objects import Found, Objects, Tag

FOLDER = "leases"
HEARTBEAT_S = 10.0
STALE_S = 60.0

log = logging.getLogger(__name__)


@dataclass
class _Held:
    """A lease of this process: which content of it is the last one, and since when."""

    content: bytes
    tag: Tag
    renewed_at: float
    beat: int = 0


class ObjectLeases:
    """The leases of one store in a bucket, and the thread that keeps this process's own alive."""

    def __init__(self, objects: Objects, clock: Callable[[], float] = time.monotonic) -> None:
        self.objects = objects
        self.clock = clock
        self.task = ""
        self._held: dict[str, _Held] = {}
        self._seen: dict[str, tuple[Tag, float]] = {}  # others' leases: the last tag, and since when
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def try_hold(self, key: str) -> Iterator[bool]:
        """Hold the lease of `key` inside the block; yields False when somebody alive holds it."""
        if not self._take(key):
            yield False
            return
        try:
            yield True
        finally:
            self._let_go(key)

    def held_by_other(self, key: str) -> bool:
        """Return whether a living process other than this one holds the lease."""
        if self.holds(key):
            return False
        found = self.objects.get(_name(key))
        return found is not None and not self._is_stale(key, found)

    def holds(self, key: str) -> bool:
        """Return whether this process holds the lease, as far as it knows."""
        return key in self._held

    def clear_stale(self) -> None:
        """Remove the leases of processes that are gone."""
        for listed in list(self.objects.list(FOLDER)):
            key = listed.name.rpartition("/")[2]
            found = self.objects.get(listed.name)
            if found is not None and not self.holds(key) and self._is_stale(key, found) and self._take(key):
                self._let_go(key)

    def renew(self) -> None:
        """Write every lease of this process anew; one that somebody else has taken is not ours any more."""
        with self._lock:
            held = list(self._held.items())
        for key, lease in held:
            content = self._content(lease.beat + 1)
            try:
                tag = self.objects.put_if_match(_name(key), content, lease.tag)
            except OutageError as error:
                log.warning("the lease %s cannot be renewed: %s", key, error)
                continue
            if tag is not None:
                lease.content, lease.tag, lease.renewed_at = content, tag, self.clock()
                lease.beat += 1
            elif self._forget(key):
                log.warning("another process took the lease %s over: this one was silent too long", key)

    def _take(self, key: str) -> bool:
        content = self._content(0)
        tag = self.objects.put_if_absent(_name(key), content)
        if tag is None:
            found = self.objects.get(_name(key))
            if found is not None and not self._is_stale(key, found):
                return False
            if found is None:  # given back just now
                tag = self.objects.put_if_absent(_name(key), content)
            else:
                log.info("the lease %s is of a process that is gone", key)
                tag = self.objects.put_if_match(_name(key), content, found.tag)
            if tag is None:
                return False
        with self._lock:
            self._held[key] = _Held(content, tag, self.clock())
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, daemon=True, name="bdtune-leases")
                self._thread.start()
        return True

    def _let_go(self, key: str) -> None:
        lease = self._held.get(key)
        if lease is None or not self._forget(key):  # taken over
            return
        try:
            if self.clock() - lease.renewed_at > STALE_S:  # somebody may have taken it over meanwhile
                found = self.objects.get(_name(key))
                if found is None or found.content != lease.content:
                    return
            self.objects.delete(_name(key))
        except OutageError as error:
            log.warning("the lease %s cannot be given back: %s; it goes stale", key, error)

    def _forget(self, key: str) -> bool:
        with self._lock:
            return self._held.pop(key, None) is not None

    def _content(self, beat: int) -> bytes:
        """Return what no other process, and no other beat, writes."""
        return json.dumps({**me(), "task": self.task, "beat": beat, "nonce": uuid.uuid4().hex}).encode()

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            self.renew()

    def _is_stale(self, key: str, found: Found) -> bool:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            holder = json.loads(found.content)
            if is_gone(holder) or is_forerunner(holder, self.task):
                return True
        now = self.clock()
        tag, since = self._seen.get(key, (None, now))
        if tag != found.tag:
            since = now
        self._seen[key] = (found.tag, since)
        return now - since > STALE_S


def _name(key: str) -> str:
    return f"{FOLDER}/{key}"

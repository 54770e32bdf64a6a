"""Who published what: one object per writer and minute, so that nobody asks for each key or lists them all.

    log/20260102T0304-<writer>.jsonl

A row holds a published key and what it cost, or a key that failed. Readers list the names of the last minutes
only and read what is new. The log may be late and may lack a row, when its writer was killed at that moment:
whoever holds the key's lease asks for the entry itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from bdtune.errors import OutageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.engine.objects import Listed, Objects, Tag

FOLDER = "log"
REFRESH_S = 1.0
"""Between two looks at the log."""
LATE = timedelta(minutes=15)
"""How far the clocks of writers may be behind, for their rows to be read while a sweep runs."""
SETTLED = timedelta(minutes=60)
MERGED_FROM = 100
"""Once so many objects are older than `SETTLED`, a sweep that starts makes one of them."""
READERS = 16

log = logging.getLogger(__name__)


class PublicationLog:
    """The log of one store: what this process writes there, and what it has read."""

    def __init__(self, objects: Objects, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.objects = objects
        self.now = now
        self.published: set[str] = set()
        """Keys that are published, as far as is known."""
        self.failed: set[str] = set()
        """Keys of which an attempt failed; it may have been forgotten since."""
        self.costs: dict[str, dict[str, Any]] = {}
        """Rows of published keys by their text, in the order in which they were read."""
        self._writer = uuid.uuid4().hex[:12]
        self._minute = ""
        self._lines: list[str] = []
        self._sent = 0
        self._news: set[str] | None = None
        self._read: dict[str, Tag] = {}
        self._newest = ""
        self._looked_at: float | None = None
        self._lock = threading.RLock()

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to this minute's object; when the server is away, it goes with the next row."""
        with self._lock:
            minute = max(self._minute, _minute(self.now()))
            if minute != self._minute:
                self._minute, self._lines, self._sent = minute, self._lines[self._sent :], 0
            line = json.dumps(row)
            self._lines.append(line)
            self._take(line)
            try:
                self.objects.put(f"{FOLDER}/{minute}-{self._writer}.jsonl", _text(self._lines))
                self._sent = len(self._lines)
            except OutageError as error:
                log.warning("the log of the store cannot be written for now: %s", error)

    def refresh(self, *, now: bool = False) -> None:
        """Read what is new, at most every second unless it is needed `now`."""
        with self._lock:
            looked_at = time.monotonic()
            if not now and self._looked_at is not None and looked_at - self._looked_at < REFRESH_S:
                return
            after = self._back(LATE) if self._looked_at is not None else ""
            listed = list(self.objects.list(FOLDER, f"{FOLDER}/{after}" if after else ""))
            self._looked_at = looked_at
            if missing := self._absorb([each for each in listed if self._read.get(each.name) != each.tag]):
                log.debug("%d objects of the log were merged meanwhile", missing)
                self._absorb(list(self.objects.list(FOLDER)))

    def news(self) -> set[str]:
        """Return the keys that were learnt of since the last call; the first one only begins."""
        self.refresh()
        with self._lock:
            found, self._news = self._news or set(), set()
            return found

    def learn(self, key: str) -> None:
        """Note that a key is published."""
        with self._lock:
            if self._news is not None and key not in self.published:
                self._news.add(key)
            self.published.add(key)

    def merge(self) -> int:
        """Make one object of many old ones, if there are many; returns how many."""
        before = _minute(self.now() - SETTLED)
        old = [each for each in self.objects.list(FOLDER) if each.name < f"{FOLDER}/{before}"]
        if len(old) < MERGED_FROM:
            return 0
        contents = self._contents(old)
        if any(content is None for content in contents):  # another process is at it
            return 0
        lines = dict.fromkeys(line for content in contents for line in _lines(content or b""))
        text = _text(list(lines))
        last = old[-1].name.removeprefix(f"{FOLDER}/").partition("-")[0]
        merged = f"{FOLDER}/{last}-{hashlib.sha256(text).hexdigest()[:12]}.jsonl"
        self.objects.put(merged, text)
        for each in old:
            if each.name != merged:
                self.objects.delete(each.name)
        return len(old)

    def _absorb(self, listed: list[Listed]) -> int:
        """Read objects; returns how many are not there any more."""
        missing = 0
        for each, content in zip(listed, self._contents(listed), strict=True):
            if content is None:
                missing += 1
                continue
            for line in _lines(content):
                self._take(line)
            self._read[each.name] = each.tag
            self._newest = max(self._newest, each.name.removeprefix(f"{FOLDER}/").partition("-")[0])
        return missing

    def _contents(self, listed: list[Listed]) -> list[bytes | None]:
        def read(each: Listed) -> bytes | None:
            found = self.objects.get(each.name)
            return None if found is None else found.content

        if len(listed) < 2:
            return [read(each) for each in listed]
        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(read, listed))

    def _take(self, line: str) -> None:
        row = json.loads(line)
        if "failed" in row:
            self.failed.add(row["failed"])
            return
        self.learn(row["key"])
        if "again" in row and line not in self.costs and self._news is not None:
            self._news.add(row["key"])  # it was brought back, which is news though it was published before
        self.costs.setdefault(line, row)

    def _back(self, span: timedelta) -> str:
        """Return a minute so long before the newest object, or before now: either clock may be wrong."""
        newest = min(self._newest or _minute(self.now()), _minute(self.now()))
        return _minute(datetime.strptime(newest, "%Y%m%dT%H%M").replace(tzinfo=UTC) - span)


def _minute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M")


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _lines(content: bytes) -> list[str]:
    return content.decode().splitlines()

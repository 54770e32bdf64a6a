"""The outbox: every event that MLflow is to hear of, appended to a file before anything is sent.

One JSON line per event, in `sweeps/<name>/outbox.jsonl`. Lines survive the death of the process as soon as
they are written, and are forced to the disk before they are delivered. How far each MLflow store has read is
kept beside it, in `delivered.json`. A line torn by a crash is skipped; its event is written again by the next
start of the sweep, which finds the trial in the store.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import uuid
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.engine.files import replace_file
from bdtune.engine.key import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FILE = "outbox.jsonl"
_COMPLETE = b',"complete":true}\n'  # the end of a line that was written whole
_HEAD = re.compile(rb'\{"event":"(\w+)","subject":"([^"\\]*)","signature":"(\w+)"')


@dataclass(frozen=True)
class Entry:
    """One event read back, and the position in the file after it."""

    event: str
    subject: str
    body: Mapping[str, Any]
    end: int


class Outbox:
    """The outbox of one sweep; any number of processes may append to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / FILE
        self.last: str | None = None  # what the last line tells of
        self.counts: Counter[str] = Counter()  # lines by event
        self._known: dict[tuple[str, str], str] = {}  # last signature by event and subject
        self._read_to = 0
        self._lock: int | None = None
        self._catch_up()

    def append(self, event: str, subject: str, identity: Any, body: Mapping[str, Any]) -> bool:
        """Append an event unless the subject's last one had the same identity; return whether it was new.

        `identity` is JSON: what makes the event worth telling again when it changes.
        """
        assert not set('"\\\n') & set(subject), f"a subject is an identifier, got {subject!r}"
        signature = key_of(identity)
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
            torn = self._catch_up()
            if self._known.get((event, subject)) == signature:
                return False
            head = {"event": event, "subject": subject, "signature": signature}
            value = {**head, "body": body}
            line = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
            # the space: a line that lost only its line feed must not become whole, it is written again below
            content = b" \n" * torn + line[:-1].encode(errors="replace") + _COMPLETE
            if os.write(descriptor, content) != len(content):
                raise OSError(errno.ENOSPC, "the line could not be written whole", str(self.file))
            self._catch_up()
        return True

    def has(self, event: str, subject: str, identity: Any) -> bool:
        """Return whether an event is the last one known of its subject; reads no file."""
        return self._known.get((event, subject)) == key_of(identity)

    def sync(self) -> None:
        """Force what was appended to the disk."""
        if self.file.exists():
            descriptor = os.open(self.file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _catch_up(self) -> bool:
        """Index what anyone appended since the last look; return whether the file ends in a torn line."""
        if not self.file.exists():
            return False
        with self.file.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                if not line.endswith(b"\n"):
                    return True
                self._read_to += len(line)
                head = _HEAD.match(line)
                if head and line.endswith(_COMPLETE):
                    event, subject, signature = (part.decode() for part in head.groups())
                    self._known[event, subject] = signature
                    self.last = event
                    self.counts[event] += 1
        return False

    # -------------------------------------------------------------------------------------------- delivery

    def position(self, store: str) -> int:
        """Return how far a store has been told."""
        return self._positions().get(store, 0)

    def pending(self, store: str, limit: int | None = None) -> list[Entry]:
        """Return the next events that a store has not been told."""
        if not self.file.exists():
            return []
        entries: list[Entry] = []
        with self.file.open("rb") as file:
            at = self.position(store)
            file.seek(at)
            for line in file:
                at += len(line)
                if line.endswith(_COMPLETE) and (entry := _parsed(line, at)):
                    entries.append(entry)
                if limit is not None and len(entries) >= limit:
                    break
        return entries

    def newest(self, event: str) -> Entry | None:
        """Return the last event of a kind, whoever has been told."""
        return next((entry for entry in reversed(self.pending("")) if entry.event == event), None)

    def has_pending(self, store: str) -> bool:
        """Return whether there is anything that a store has not been told."""
        return self.file.exists() and bool(self.pending(store, limit=1))

    def delivered(self, store: str, position: int) -> None:
        """Note that a store has been told everything before a position."""
        content = json.dumps({**self._positions(), store: position}, indent=1)
        replace_file(self.folder / "delivered.json", content.encode())

    def rejected(self, entry: Entry, reason: str) -> None:
        """Set aside an event that a store will never accept, so that it does not block those after it."""
        line = json.dumps({"event": entry.event, "subject": entry.subject, "reason": reason})
        with (self.folder / "rejected.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _positions(self) -> dict[str, int]:
        try:
            return dict(json.loads((self.folder / "delivered.json").read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError):
            return {}  # everything is told once more, which changes nothing

    def name(self) -> str:
        """Return this outbox's own name, which tells apart sweeps of one name on a shared server."""
        file = self.folder / "outbox.id"
        if not file.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
            temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
            try:
                os.link(temporary, file)  # unlike a rename, fails when another process was first
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        return file.read_text(encoding="utf-8").strip()

    def claim(self) -> bool:
        """Try to become the one process that delivers this outbox; kept until `release` or death."""
        if self._lock is not None:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "outbox.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def release(self) -> None:
        """Let another process deliver."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _parsed(line: bytes, end: int) -> Entry | None:
    try:
        value = json.loads(line)
        return Entry(value["event"], value["subject"], value["body"], end)
    except (ValueError, KeyError, TypeError):
        return None


@contextmanager
def _locked(file: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(file, flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)

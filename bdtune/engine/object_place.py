"""A store in a bucket, which nodes need not share a disk for.

    entries/<key>                     which attempt is meant, and the manifest; or where that was moved
    payloads/<key>/<attempt>/<file>   arrays.safetensors, curve.jsonl; immutable
    checkpoints/<key>                 of running and stopped stages
    leases/, pins/                    who works on what, and what running sweeps use
    failed/<key>                      errors of failed attempts
    log/                              what was published and what it cost, by writer and minute
    quarantine/                       entries whose size or digest is wrong

An entry appears by one conditional write of its manifest, after its payload, which has a name of its own in
each attempt. What an attempt that lost or died has left is removed by `cache gc` after a day.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bdtune.engine.manifest import MANIFEST, FileEntry
from bdtune.engine.node_cache import NodeCache
from bdtune.engine.object_checkpoint import ObjectCheckpoint
from bdtune.engine.object_lease import ObjectLeases
from bdtune.engine.object_pins import ObjectPins
from bdtune.engine.place import ORPHANED
from bdtune.engine.publication_log import READERS, PublicationLog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from bdtune.engine.node_cache import Moved
    from bdtune.engine.objects import Listed, Objects, Tag

GRAVES = "quarantine/"
"""So begins what stands in place of a damaged entry, whose key is free: the name under which it lies now."""
LONGEST_GRAVE = 100
"""Bytes of such a name; an entry has more, so that a listing tells them apart."""

log = logging.getLogger(__name__)


class ObjectPlace:
    """Objects below an address."""

    wait_s = 2.0
    readers = READERS
    layout = "payloads/<key>/<attempt>"
    copies = True

    def __init__(self, objects: Objects, cache: NodeCache | None = None) -> None:
        self.objects = objects
        self.root = objects.address
        self.cache = NodeCache.of_this_node() if cache is None else cache
        self.leases = ObjectLeases(objects)
        self.pins = ObjectPins(objects)
        self.log = PublicationLog(objects)
        self._read: dict[str, tuple[str, Tag]] = {}  # the attempt and tag of each manifest that was read

    @property
    def moved(self) -> Moved:
        return self.cache.moved

    def where(self, key: str) -> str:
        return f"{self.root}/{_payload(key)}"

    def manifest(self, key: str) -> bytes | None:
        self.log.refresh()
        listed = key in self.log.published
        if not listed and not self.leases.holds(key):
            return None
        found = self.objects.get(_entry(key))
        if found is None or _is_grave(found.content):
            self.log.published.discard(key)
            return None
        attempt, content = _opened(found.content)
        self._read[key] = attempt, found.tag
        if not listed:  # its writer was killed before it could say so
            self.log.append({"key": key})
        return content

    def read(self, key: str, name: str, entry: FileEntry, *, copies: bool = True) -> bytes:
        copy = self.cache.get(entry.sha256, entry.bytes) if copies else None
        if copy is not None:
            return copy
        attempt = self._read[key][0]
        found = self.objects.get(_payload(key, attempt, name)) if attempt else None
        if found is None:
            raise FileNotFoundError(f"{name} is missing")
        self.cache.fetched(found.content)
        return found.content

    def commit(self, key: str, contents: Mapping[str, bytes], manifest: bytes, *, force: bool) -> None:
        attempt = uuid.uuid4().hex[:12]
        for name, content in contents.items():
            self.objects.put(_payload(key, attempt, name), content)
        if not self._enter(key, _closed(attempt, manifest)):
            for name in contents:
                self.objects.delete(_payload(key, attempt, name))
        for content in contents.values():  # which the stages after it, on this node, will read
            self.cache.put(content)
        self.log.learn(key)

    def _enter(self, key: str, content: bytes) -> bool:
        """Write an entry where there is none; returns whether it stands."""
        while self.objects.put_if_absent(_entry(key), content) is None:
            found = self.objects.get(_entry(key))
            if found is None:  # removed just now
                continue
            if not _is_grave(found.content):
                return False
            if self.objects.put_if_match(_entry(key), content, found.tag) is not None:
                break
        return True

    def drop(self, key: str, name: str, manifest: bytes) -> bool:
        attempt, tag = self._read[key]
        changed = self.objects.put_if_match(_entry(key), _closed(attempt, manifest), tag)
        if changed is None:
            return False
        self._read[key] = attempt, changed
        self.objects.delete(_payload(key, attempt, name))
        return True

    def bring_back(self, key: str, contents: Mapping[str, bytes], manifest: bytes) -> None:
        before, tag = self._read[key]
        attempt = uuid.uuid4().hex[:12]  # who is just dropping a file of the old one does not reach this
        for name, content in contents.items():
            self.objects.put(_payload(key, attempt, name), content)
        changed = self.objects.put_if_match(_entry(key), _closed(attempt, manifest), tag)
        if changed is not None:
            self._read[key] = attempt, changed
        for listed in self._payload(key, attempt if changed is None else before):
            self.objects.delete(listed.name)
        for content in contents.values():
            self.cache.put(content)

    def quarantine(self, key: str) -> str | None:
        if key not in self._read:
            return None
        attempt, tag = self._read.pop(key)
        grave = f"{GRAVES}{key}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        found = self.objects.get(_entry(key))
        if found is None or self.objects.put_if_match(_entry(key), grave.encode(), tag) is None:
            return None  # another process was faster, or gc took it
        self.log.published.discard(key)
        self.objects.put(f"{grave}/{MANIFEST}", found.content)
        for listed in self._payload(key, attempt):
            self._move(listed.name, f"{grave}/{_last(listed)}")
        return f"{self.root}/{grave}"

    def _move(self, name: str, to: str) -> None:
        found = self.objects.get(name)
        if found is not None:
            self.objects.put(to, found.content)
            self.objects.delete(name)

    def remove(self, key: str) -> None:
        with self.leases.try_hold(key) as mine:  # so that nobody publishes it meanwhile
            found = self.objects.get(_entry(key)) if mine else None
            if found is None:
                return
            attempt, _ = _opened(found.content)
            self.objects.delete(_entry(key))
            self.log.published.discard(key)
            for listed in self._payload(key, attempt):
                self.objects.delete(listed.name)

    def _payload(self, key: str, attempt: str) -> list[Listed]:
        return list(self.objects.list(_payload(key, attempt))) if attempt else []

    def keys(self) -> list[str]:
        found = sorted(_last(each) for each in self.objects.list("entries") if each.size > LONGEST_GRAVE)
        for key in found:
            self.log.learn(key)
        return found

    def files(self, key: str, names: Iterable[str], into: Path) -> list[Path]:
        manifest = self.manifest(key)
        if manifest is None:
            return []
        entries = {name: FileEntry(**entry) for name, entry in json.loads(manifest)["files"].items()}
        found = []
        for name in names:
            if name == MANIFEST or name in entries:
                path = into / key / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(manifest if name == MANIFEST else self.read(key, name, entries[name]))
                found.append(path)
        return found

    def note(self, key: str, row: dict[str, Any] | None) -> None:
        self.log.append({"key": key, **(row or {})})

    def notes(self) -> list[dict[str, Any]]:
        self.log.refresh()
        return [row for row in self.log.costs.values() if "seconds" in row]

    def news(self) -> set[str]:
        return self.log.news()

    def catch_up(self) -> None:
        self.log.refresh(now=True)

    def failure(self, key: str) -> bytes | None:
        self.log.refresh()
        if key not in self.log.failed:
            return None
        found = self.objects.get(_failed(key))
        if found is None:
            self.log.failed.discard(key)
            return None
        return found.content

    def set_failure(self, key: str, content: bytes) -> None:
        self.objects.put(_failed(key), content)
        self.log.append({"failed": key})

    def forget_failure(self, key: str) -> None:
        self.log.refresh()
        if key in self.log.failed:
            self.objects.delete(_failed(key))
            self.log.failed.discard(key)

    def checkpoint(self, key: str, interval_s: float) -> ObjectCheckpoint:
        return ObjectCheckpoint(self.objects, f"checkpoints/{key}", interval_s)

    def clear_leftovers(self) -> None:
        self.leases.clear_stale()
        self.pins.keys()
        self.log.refresh()
        for folder in ("checkpoints", "failed"):
            for listed in self.objects.list(folder):
                if _last(listed) in self.log.published:  # its writer was killed after publishing
                    self.objects.delete(listed.name)
        if merged := self.log.merge():
            log.info("made one object of %d in the store's log", merged)

    def clear_orphans(self) -> int:
        """Remove files of a day ago that no manifest names; returns how many objects."""
        now, attempts = datetime.now(UTC), defaultdict(list)
        for listed in self.objects.list("payloads"):
            attempts[listed.name.rpartition("/")[0]].append(listed)
        removed = 0
        for folder, parts in attempts.items():
            old = now - max(part.modified for part in parts) > ORPHANED
            for part in self._unnamed(folder, parts) if old else ():
                self.objects.delete(part.name)
                removed += 1
        return removed

    def _unnamed(self, folder: str, parts: Iterable[Listed]) -> list[Listed]:
        """Return those files of an attempt that no manifest names; none where the manifest is damaged."""
        _, key, attempt = folder.split("/")
        found = self.objects.get(_entry(key))
        own, manifest = ("", b"") if found is None else _opened(found.content)
        named: Iterable[str] = ()
        if own == attempt:
            named = {_last(part) for part in parts}
            with suppress(ValueError, KeyError, TypeError):
                named = json.loads(manifest)["files"]
        return [part for part in parts if _last(part) not in named]


def _entry(key: str) -> str:
    return f"entries/{key}"


def _payload(*names: str) -> str:
    return "/".join(("payloads", *names))


def _failed(key: str) -> str:
    return f"failed/{key}"


def _last(listed: Listed) -> str:
    return listed.name.rpartition("/")[2]


def _closed(attempt: str, manifest: bytes) -> bytes:
    """Return what an entry holds: a line with the attempt, then the manifest."""
    return attempt.encode() + b"\n" + manifest


def _opened(content: bytes) -> tuple[str, bytes]:
    """Return the attempt and the manifest of an entry; of a damaged one the attempt may be ""."""
    line, _, manifest = content.partition(b"\n")
    attempt = line.decode(errors="replace")
    return (attempt if re.fullmatch("[0-9a-f]{12}", attempt) else ""), manifest


def _is_grave(content: bytes) -> bool:
    return content.startswith(GRAVES.encode())

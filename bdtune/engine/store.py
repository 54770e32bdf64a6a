"""The store: a content-addressed folder of artefacts, safe among any number of processes.

    objects/ab/<key>/   manifest.json, arrays.safetensors, curve.jsonl; immutable
    tmp/                entries being written, checkpoints of running stages
    leases/             who works on what
    pins/               what running sweeps use
    failed/             errors of failed attempts
    quarantine/         entries whose size or digest is wrong
    costs.jsonl         a line for each result that was published: its key and seconds, for predictions

An entry appears under its key by one rename: it is complete, or it does not exist. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import traceback
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import load, save

from bdtune.engine.checkpoint import FileCheckpoint
from bdtune.engine.disk import room
from bdtune.engine.files import append_line, replace_file, sync_folder, write_plain, write_synced
from bdtune.engine.key import digest_of
from bdtune.engine.lease import Leases
from bdtune.engine.manifest import Cost, FileEntry, Manifest
from bdtune.engine.news import News
from bdtune.engine.owner import beside, clear_unfinished
from bdtune.engine.pins import Pins
from bdtune.engine.stage import Artefact, config_hash_of, scale_of
from bdtune.errors import Diverged, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARRAYS, CURVE, MANIFEST = "arrays.safetensors", "curve.jsonl", "manifest.json"
COSTS = "costs.jsonl"

FORCE_S = 1.0
"""Results that took less are not forced to the disk one by one: a power failure may tear or lose them, which
every reader notices, and computing them again is cheaper than having waited for the disk. A killed process
loses nothing either way."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A failed attempt at a key."""

    stage: str
    status: Literal["failed", "diverged"]
    error: str
    traceback: str
    attempts: int


class Store:
    """One store; `root` is created when missing, unless `create` is False: then it is only read."""

    def __init__(self, root: Path, checkpoint_interval_s: float = 30.0, *, create: bool = True) -> None:
        self.root = root.absolute()
        self.checkpoint_interval_s = checkpoint_interval_s
        if create:
            self._make_folders()
        self.leases = Leases(self.root / "leases")
        self.pins = Pins(self.root / "pins")
        self._manifests: dict[str, Manifest] = {}
        self._verified: set[str] = set()
        self._news: News | None = None
        self._absent: set[str] = set()

    def _make_folders(self) -> None:
        try:
            for name in ("objects", "tmp/checkpoints", "leases", "failed", "quarantine"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make a store at {self.root}: {error}") from error

    def folder(self, key: str) -> Path:
        """Return where the entry of a key lies, or would lie."""
        return self.root / "objects" / key[:2] / key

    def has(self, key: str) -> bool:
        """Return whether the key is published."""
        return self.manifest(key) is not None

    def manifest(self, key: str) -> Manifest | None:
        """Return the manifest of a published key, else None; a torn one is quarantined."""
        if key in self._absent:
            return None
        if key not in self._manifests:
            try:
                content = (self.folder(key) / MANIFEST).read_bytes()
            except FileNotFoundError:
                if self._news is not None:
                    self._absent.add(key)
                return None
            try:
                self._manifests[key] = Manifest.from_json(content)
            except ValueError as error:
                self.quarantine(key, str(error))
                return None
        return self._manifests[key]

    def news(self) -> set[str]:
        """Return the keys that any process has published since the last call; the first one only begins.

        Until `end_news`, a key that was absent counts as absent until it is in the news, or `look_again` is
        called for it: who asks for thousands of keys again and again opens no file for each.
        """
        if self._news is None:
            self._news = News(self.root / COSTS)
        found = self._news.take()
        self._absent -= found
        return found

    def end_news(self) -> None:
        """From now on every look at a key is one at the store again."""
        self._news = None
        self._absent.clear()

    def look_again(self, key: str) -> None:
        """Look for a key itself the next time: its line in the log may be lost."""
        self._absent.discard(key)

    def open(self, key: str) -> Artefact | None:
        """Return the artefact, or None when it is missing or was found damaged and quarantined.

        Sizes are checked at every call, digests at the first call of this process.
        """
        manifest = self.manifest(key)
        if manifest is None:
            return None
        try:
            contents = {name: self._read(key, name, entry) for name, entry in manifest.files.items()}
        except (OSError, ValueError) as error:
            self.quarantine(key, str(error))
            return None
        self._verified.add(key)
        curve = contents.get(CURVE, b"").decode().splitlines()
        arrays = load(contents[ARRAYS]) if ARRAYS in contents else {}
        return Artefact(arrays, manifest.info, tuple(json.loads(line) for line in curve))

    def curve(self, key: str) -> list[dict[str, float]]:
        """Return an entry's curve alone: one row per epoch; empty when it has none or cannot be read."""
        try:
            lines = (self.folder(key) / CURVE).read_text().splitlines()
            return [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return []

    def _read(self, key: str, name: str, entry: FileEntry) -> bytes:
        content = (self.folder(key) / name).read_bytes()
        if len(content) != entry.bytes:
            raise ValueError(f"{name} has {len(content)} bytes, expected {entry.bytes}")
        if key not in self._verified and hashlib.sha256(content).hexdigest() != entry.sha256:
            raise ValueError(f"{name} has another SHA-256 than its manifest says")
        return content

    def publish(
        self,
        key: str,
        kind: str,
        preimage: dict[str, Any],
        artefact: Artefact,
        *,
        cost: Cost,
        made_for: str = "",
    ) -> Manifest:
        """Store an artefact under its key; when another process was faster, its copy stands."""
        contents = _payload(artefact)
        manifest = Manifest(
            key=key,
            stage=preimage["stage"],
            kind=kind,
            preimage=preimage,
            digest=digest_of(artefact.arrays, artefact.info),
            info=dict(artefact.info),
            files={
                name: FileEntry(len(content), hashlib.sha256(content).hexdigest())
                for name, content in contents.items()
            },
            cost=cost,
            made_for=made_for,
        )
        contents[MANIFEST] = manifest.to_json()  # the manifest comes last
        self._rename_into_place(key, contents, force=cost.seconds >= FORCE_S)
        append_line(self.root / COSTS, json.dumps(_cost_row(manifest, len(artefact.curve))))
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)
        self.checkpoint(key).clear()
        self.look_again(key)
        published = self.manifest(key)
        if published is None:
            raise StoreError(f"{self.folder(key)} vanished right after it was written")
        return published

    def _rename_into_place(self, key: str, contents: dict[str, bytes], *, force: bool) -> None:
        temporary = beside(self.root / "tmp" / key)
        target = self.folder(key)
        try:
            with room(target, sum(map(len, contents.values()))):
                temporary.mkdir()
                for name, content in contents.items():
                    (write_synced if force else write_plain)(temporary / name, content)
                if force:
                    sync_folder(temporary)
                target.parent.mkdir(exist_ok=True)
            try:
                temporary.rename(target)
                if force:
                    sync_folder(target.parent)
            except OSError:
                if not (target / MANIFEST).exists():  # else another process was faster
                    self.quarantine(key, "it has no manifest")
                    temporary.rename(target)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def adopt(self, contents: dict[str, bytes]) -> None:
        """Take in an entry of another store, given as its files; one that is here already stands.

        Raises `ValueError` where the files are not those that their manifest names.
        """
        manifest = Manifest.from_json(contents[MANIFEST])
        found = {
            name: FileEntry(len(content), hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
            if name != MANIFEST
        }
        if found != manifest.files:
            raise ValueError(f"the files of entry {manifest.key} are not those of its manifest")
        self.look_again(manifest.key)
        if not self.has(manifest.key):
            last = {MANIFEST: contents[MANIFEST]}
            files = {name: content for name, content in contents.items() if name != MANIFEST}
            self._rename_into_place(manifest.key, files | last, force=True)
            self.look_again(manifest.key)

    def quarantine(self, key: str, why: str) -> None:
        """Move a damaged entry away, say so, and forget it, so that it is computed again."""
        self._manifests.pop(key, None)
        self._verified.discard(key)
        grave = self.root / "quarantine" / f"{key}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        try:
            self.folder(key).rename(grave)
        except FileNotFoundError:
            return  # another process was faster, or gc took it
        log.warning("store entry %s is damaged (%s); moved to %s, it will be computed again", key, why, grave)

    def remove(self, key: str) -> None:
        """Delete an entry; readers see it whole or not at all."""
        self._manifests.pop(key, None)
        self._verified.discard(key)
        grave = beside(self.root / "tmp" / key)
        try:
            self.folder(key).rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Remove the leases, the pins and the files of processes that are gone."""
        self.leases.clear_stale()
        self.pins.keys()
        clear_unfinished(self.root / name for name in ("tmp", "tmp/checkpoints", "leases", "pins", "failed"))
        for folder in ("tmp/checkpoints", "failed"):
            for file in (self.root / folder).glob("[!.]*"):
                if self.has(file.stem):  # its writer was killed right after publishing
                    file.unlink(missing_ok=True)

    def entries(self) -> Iterator[Manifest]:
        """Yield the manifests of all published entries, in key order."""
        for folder in sorted(self.root.glob("objects/??/*")):
            manifest = self.manifest(folder.name)
            if manifest is not None:
                yield manifest

    def checkpoint(self, key: str, interval_s: float | None = None) -> FileCheckpoint:
        """Return the checkpoint slot of a key."""
        interval_s = self.checkpoint_interval_s if interval_s is None else interval_s
        return FileCheckpoint(self.root / "tmp" / "checkpoints" / f"{key}.safetensors", interval_s)

    def record_failure(self, key: str, stage: str, error: BaseException) -> Failure:
        """Remember that an attempt at a key failed."""
        before = self.failure(key)
        failure = Failure(
            stage=stage,
            status="diverged" if isinstance(error, Diverged) else "failed",
            error=f"{type(error).__name__}: {error}",
            traceback="".join(traceback.format_exception(error)),
            attempts=1 + (before.attempts if before else 0),
        )
        replace_file(self.root / "failed" / f"{key}.json", json.dumps(vars(failure), indent=1).encode())
        return failure

    def failure(self, key: str) -> Failure | None:
        """Return the last failed attempt at a key, if none has succeeded since."""
        try:
            return Failure(**json.loads((self.root / "failed" / f"{key}.json").read_bytes()))
        except (FileNotFoundError, ValueError):
            return None

    def forget_failure(self, key: str) -> None:
        """Allow a failed key to be tried again."""
        (self.root / "failed" / f"{key}.json").unlink(missing_ok=True)


def _payload(artefact: Artefact) -> dict[str, bytes]:
    contents = {}
    if artefact.arrays:
        by_name = sorted(artefact.arrays.items())  # equal arrays give equal bytes
        contents[ARRAYS] = save({name: np.require(array, requirements="C") for name, array in by_name})
    if artefact.curve:
        contents[CURVE] = "".join(json.dumps(dict(row)) + "\n" for row in artefact.curve).encode()
    return contents


def _cost_row(manifest: Manifest, epochs: int) -> dict[str, Any]:
    config_hash = config_hash_of(manifest.preimage)
    seconds = round(manifest.cost.seconds, 4)
    scale = scale_of(manifest.preimage.get("inputs", {}))
    row = {"key": manifest.key, "stage": manifest.stage, "config_hash": config_hash, "scale": scale}
    return {**row, "epochs": epochs, "seconds": seconds}

"""The store: content-addressed artefacts, in a folder or a bucket, safe among any number of processes.

An entry is complete, or it does not exist. What lies where: `bdtune.engine.folder_place`, `object_place`.
No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import logging
import traceback
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import load, save

from bdtune.engine.environment import environment
from bdtune.engine.key import digest_of
from bdtune.engine.manifest import MANIFEST, Cost, FileEntry, Manifest
from bdtune.engine.node import config_hash_of, scale_of
from bdtune.engine.place import DAMAGED, place_at
from bdtune.engine.stage import Artefact
from bdtune.errors import DeviceFullError, Diverged, OtherBitsError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from bdtune.engine.place import Checkpoint, Place

ARRAYS, CURVE = "arrays.safetensors", "curve.jsonl"

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
    """Empty where the error says all."""
    attempts: int


class Store:
    """One store, in a folder or at an address such as s3://bucket/prefix.

    A folder is created when missing, unless `create` is False: then it is only read.
    """

    def __init__(
        self, at: Path | str | Place, checkpoint_interval_s: float = 30.0, *, create: bool = True
    ) -> None:
        self.place: Place = place_at(at, create=create) if isinstance(at, str | Path) else at
        self.root = self.place.root
        self.checkpoint_interval_s = checkpoint_interval_s
        self.leases, self.pins = self.place.leases, self.place.pins
        self.wait_s = self.place.wait_s
        self._manifests: dict[str, Manifest] = {}
        self._verified: set[str] = set()
        self._following = False
        self._absent: set[str] = set()

    def has(self, key: str) -> bool:
        """Return whether the key is published, perhaps without arrays that were dropped since."""
        return self.manifest(key) is not None

    def is_whole(self, key: str) -> bool:
        """Return whether the key is published and nothing was dropped of it: its arrays can be read."""
        manifest = self.manifest(key)
        if manifest is not None and manifest.dropped:
            self._forget(key)  # they may have been brought back
            manifest = self.manifest(key)
        return manifest is not None and manifest.dropped is None

    def manifest(self, key: str) -> Manifest | None:
        """Return the manifest of a published key, else None; a torn one is quarantined."""
        if key in self._absent:
            return None
        found = self._manifests.get(key)  # another thread may be dropping the entry's arrays
        if found is None:
            content = self.place.manifest(key)
            if content is None:
                if self._following:
                    self._absent.add(key)
                return None
            try:
                found = self._manifests[key] = Manifest.from_json(content)
            except ValueError as error:
                self.quarantine(key, str(error))
                return None
        return found

    def known(self, key: str) -> Manifest | None:
        """Return a key's manifest as it was last read, without another look."""
        return self._manifests.get(key)

    def news(self) -> set[str]:
        """Return the keys that any process has published since the last call; the first one only begins.

        Until `end_news`, a key that was absent counts as absent until it is in the news, or `look_again` is
        called for it: who asks for thousands of keys again and again opens no file for each.
        """
        self._following = True
        found = self.place.news()
        self._absent -= found
        return found

    def end_news(self) -> None:
        """From now on every look at a key is one at the store again."""
        self._following = False
        self._absent.clear()

    def look_again(self, key: str) -> None:
        """Look for a key itself the next time: its line in the log may be lost."""
        self._absent.discard(key)

    def open(self, key: str, *, copies: bool = True) -> Artefact | None:
        """Return the artefact, or None when it is missing, lacks what was dropped, or was found damaged.

        A damaged one is quarantined. Sizes are checked at every call, digests at the first call of this
        process. Without `copies` the store's own files are read, not those that this node has copied from it.
        """
        found = self._checked(key, copies=copies) if self.is_whole(key) else None
        if found is None or found[0].dropped:
            return None
        manifest, contents = found
        arrays = load(contents[ARRAYS]) if ARRAYS in contents else {}
        return Artefact(arrays, manifest.info, tuple(_rows(contents.get(CURVE, b""))))

    def is_sound(self, key: str) -> bool:
        """Read all that the store has of an entry, with digests; a damaged one is quarantined."""
        return self._checked(key, copies=False) is not None

    def _checked(self, key: str, *, copies: bool) -> tuple[Manifest, dict[str, bytes]] | None:
        """Return an entry's manifest and files; None when it is missing, or was found damaged."""
        for known in (True, False):
            manifest = self.manifest(key)
            if manifest is None:
                return None
            files = manifest.files.items()
            try:
                contents = {name: self._read(key, name, entry, copies=copies) for name, entry in files}
            except (OSError, ValueError) as error:
                if known:
                    self._forget(key)  # something may have been dropped, or brought back, since it was read
                else:
                    self.quarantine(key, str(error))
            else:
                self._verified.add(key)
                return manifest, contents
        return None

    def curve(self, key: str) -> list[dict[str, float]]:
        """Return an entry's curve alone: one row per epoch; empty when it has none or cannot be read."""
        manifest = self.manifest(key)
        if manifest is None or CURVE not in manifest.files:
            return []
        try:
            return _rows(self.place.read(key, CURVE, manifest.files[CURVE]))
        except (OSError, ValueError):
            return []

    def _read(self, key: str, name: str, entry: FileEntry, *, copies: bool) -> bytes:
        content = self.place.read(key, name, entry, copies=copies)
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
            files={name: _entry_of(content) for name, content in contents.items()},
            cost=cost,
            made_for=made_for,
        )
        force = cost.seconds >= FORCE_S
        self.place.commit(key, contents, manifest.to_json(), force=force)
        self.place.note(key, _cost_row(manifest, len(artefact.curve)))
        self.place.forget_failure(key)
        self.checkpoint(key).clear()
        self.look_again(key)
        published = self.manifest(key)
        if published is None:
            raise StoreError(f"the entry {key} of {self.root} vanished right after it was written")
        return published

    def drop(self, key: str, by: str) -> int:
        """Remove an entry's arrays and note `by` what; manifest, info and curve stay. Returns bytes freed.

        Nothing is done where it has none, or somebody holds its lease. Whoever needs the arrays later
        computes them again: see `bring_back`.
        """
        with self.leases.try_hold(key) as mine:
            self._forget(key)
            manifest = self.manifest(key) if mine else None
            if manifest is None or manifest.dropped or ARRAYS not in manifest.files:
                return 0
            without = manifest.without(ARRAYS, by)
            if not self.place.drop(key, ARRAYS, without.to_json()):
                self._forget(key)
                return 0
            self._manifests[key] = without
            return manifest.files[ARRAYS].bytes

    def bring_back(self, key: str, artefact: Artefact) -> None:
        """Give an entry back the arrays that were dropped of it, computed again; all else stays as it is.

        Raises `OtherBitsError` where they are not the ones that were dropped.
        """
        manifest = self.manifest(key)
        if manifest is None or manifest.dropped is None:  # gc took it, or another process was faster
            return
        if digest_of(artefact.arrays, artefact.info) != manifest.digest:
            raise OtherBitsError(_other_bits(manifest))
        self._give_back(manifest, {ARRAYS: _payload(artefact)[ARRAYS]})
        self.place.forget_failure(key)
        self.checkpoint(key).clear()

    def _give_back(self, manifest: Manifest, found: dict[str, bytes]) -> None:
        key, files = manifest.key, manifest.files.items()
        try:
            contents = {name: self._read(key, name, entry, copies=False) for name, entry in files} | found
        except (OSError, ValueError) as error:
            self.quarantine(key, str(error))  # it is computed as if for the first time
            return
        entries = {name: _entry_of(content) for name, content in contents.items()}
        whole = replace(manifest, files=entries, dropped=None)
        self.place.bring_back(key, contents, whole.to_json())
        self.place.note(key, {"again": uuid.uuid4().hex[:12]})
        self._forget(key)

    def contents(self, key: str) -> dict[str, bytes]:
        """Return the files of an entry as they are, its manifest too; nothing is checked, copied or moved.

        Empty where there is no such entry. Raises `OSError` where a file cannot be read.
        """
        content = self.place.manifest(key)
        if content is None:
            return {}
        entries = Manifest.from_json(content).files.items()
        files = {name: self.place.read(key, name, entry, copies=False) for name, entry in entries}
        return {**files, MANIFEST: content}

    def adopt(self, contents: dict[str, bytes]) -> None:
        """Take in an entry of another store, given as its files; one that is here already stands.

        What was dropped of the one here, the other one brings back.
        Raises `ValueError` where the files are not those that their manifest names.
        """
        files = dict(contents)
        content = files.pop(MANIFEST)
        manifest = Manifest.from_json(content)
        found = {name: _entry_of(file) for name, file in files.items()}
        if found != manifest.files:
            raise ValueError(f"the files of entry {manifest.key} are not those of its manifest")
        self.look_again(manifest.key)
        here = self.manifest(manifest.key)
        if here is None:
            self.place.commit(manifest.key, files, content, force=True)
            self.place.note(manifest.key, None)
            self.look_again(manifest.key)
        elif here.dropped and not manifest.dropped and here.digest == manifest.digest:
            self._give_back(here, {name: files[name] for name in here.dropped.files})

    def quarantine(self, key: str, why: str) -> None:
        """Move a damaged entry away, say so, and forget it, so that it is computed again."""
        self._forget(key)
        grave = self.place.quarantine(key)
        if grave is not None:
            log.warning(DAMAGED, key, why, grave)

    def remove(self, key: str) -> None:
        """Delete an entry; readers see it whole or not at all."""
        self._forget(key)
        self.place.remove(key)

    def _forget(self, key: str) -> None:
        self._manifests.pop(key, None)
        self._verified.discard(key)

    def clear_leftovers(self) -> None:
        """Remove the leases, the pins and the unfinished files of processes that are gone."""
        self.place.clear_leftovers()

    def every_key(self) -> list[str]:
        """Return the keys of all entries, in order, damaged ones too."""
        return self.place.keys()

    def entries(self) -> Iterator[Manifest]:
        """Yield the manifests of all published entries, in key order."""
        yield from filter(None, self._manifests_of(self.place.keys()))

    def _manifests_of(self, keys: Iterable[str]) -> Iterator[Manifest | None]:
        if self.place.readers == 1:
            yield from map(self.manifest, keys)
            return
        with ThreadPoolExecutor(self.place.readers) as pool:
            yield from pool.map(self.manifest, keys)

    def files(self, key: str, names: Iterable[str], into: Path) -> list[Path]:
        """Return files of an entry, those it has, as paths; from a bucket they are copied below `into`."""
        return self.place.files(key, names, into)

    def costs(self) -> list[dict[str, Any]]:
        """Return a row for each publication: its stage, what it depended on, the seconds and the bytes."""
        return self.place.notes()

    def catch_up(self) -> None:
        """Read at once what other processes have published: a bucket's log is else read once a second."""
        self.place.catch_up()

    def checkpoint(self, key: str, interval_s: float | None = None) -> Checkpoint:
        """Return the checkpoint slot of a key."""
        return self.place.checkpoint(key, self.checkpoint_interval_s if interval_s is None else interval_s)

    def record_failure(self, key: str, stage: str, error: BaseException) -> Failure:
        """Remember that an attempt at a key failed."""
        before, expected = self.failure(key), isinstance(error, DeviceFullError)
        failure = Failure(
            stage=stage,
            status="diverged" if isinstance(error, Diverged) else "failed",
            error=f"{type(error).__name__}: {error}",
            traceback="" if expected else "".join(traceback.format_exception(error)),
            attempts=1 + (before.attempts if before else 0),
        )
        self.place.set_failure(key, json.dumps(vars(failure), indent=1).encode())
        return failure

    def failure(self, key: str) -> Failure | None:
        """Return the last failed attempt at a key, if none has succeeded since."""
        content = self.place.failure(key)
        if content is None:
            return None
        try:
            return Failure(**json.loads(content))
        except ValueError:
            return None

    def forget_failure(self, key: str) -> None:
        """Allow a failed key to be tried again."""
        self.place.forget_failure(key)


def _other_bits(manifest: Manifest) -> str:
    """Say what was dropped, by what, and what is different here from where it was computed."""
    assert manifest.dropped is not None
    here = environment()
    found = [
        f"{name} {there}, here {here.get(name, 'none')}"
        for name, there in manifest.environment.items()
        if here.get(name) != there
    ]
    changed = "; ".join(found) or "with the same libraries"
    return (
        f"its arrays were dropped by {manifest.dropped.by}, and computed again here they have other bits "
        f"than on {manifest.host} ({changed}): compute them there, or "
        f"'bdtune cache remove {manifest.key}' lets it count as never computed"
    )


def _entry_of(content: bytes) -> FileEntry:
    return FileEntry(len(content), hashlib.sha256(content).hexdigest())


def _rows(curve: bytes) -> list[dict[str, float]]:
    return [json.loads(line) for line in curve.decode().splitlines()]


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
    row = {"stage": manifest.stage, "config_hash": config_hash, "scale": scale}
    return {**row, "epochs": epochs, "seconds": seconds, "bytes": manifest.size}

"""A store in a folder, local or on a file system that all nodes share.

    objects/ab/<key>/   manifest.json, arrays.safetensors, curve.jsonl; immutable
    tmp/                entries being written, checkpoints of running stages
    leases/             who works on what
    pins/               what running sweeps use
    failed/             errors of failed attempts
    quarantine/         entries whose size or digest is wrong
    costs.jsonl         a line for each result that was published: its key, and seconds for predictions

An entry appears under its key by one rename: it is complete, or it does not exist.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
import uuid
from typing import TYPE_CHECKING, Any

from bdtune.engine.checkpoint import FileCheckpoint
from bdtune.engine.disk import room
from bdtune.engine.files import append_line, replace_file, sync_folder, write_plain, write_synced
from bdtune.engine.lease import Leases
from bdtune.engine.manifest import MANIFEST
from bdtune.engine.news import News
from bdtune.engine.node_cache import Moved
from bdtune.engine.owner import beside, clear_unfinished
from bdtune.engine.pins import Pins
from bdtune.engine.place import DAMAGED, ORPHANED
from bdtune.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from bdtune.engine.manifest import FileEntry

COSTS = "costs.jsonl"

log = logging.getLogger(__name__)


class FolderPlace:
    """A folder, which is created when missing unless `create` is False: then it is only read."""

    wait_s = 0.2
    readers = 1
    layout = "objects/<first two digits of the key>/<key>"
    copies = False
    moved = Moved()

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.root = root.absolute()
        if create:
            self._make_folders()
        self.leases = Leases(self.root / "leases")
        self.pins = Pins(self.root / "pins")
        self._news: News | None = None

    def _make_folders(self) -> None:
        try:
            for name in ("objects", "tmp/checkpoints", "leases", "failed", "quarantine"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make a store at {self.root}: {error}") from error

    def where(self, key: str) -> str:
        return str(self.folder(key))

    def folder(self, key: str) -> Path:
        """Return where the entry of a key lies, or would lie."""
        return self.root / "objects" / key[:2] / key

    def manifest(self, key: str) -> bytes | None:
        try:
            return (self.folder(key) / MANIFEST).read_bytes()
        except FileNotFoundError:
            return None

    def read(self, key: str, name: str, entry: FileEntry, *, copies: bool = True) -> bytes:
        return (self.folder(key) / name).read_bytes()

    def commit(self, key: str, contents: Mapping[str, bytes], manifest: bytes, *, force: bool) -> None:
        temporary = beside(self.root / "tmp" / key)
        target = self.folder(key)
        files = {**contents, MANIFEST: manifest}  # the manifest comes last
        try:
            with room(target, sum(map(len, files.values()))):
                temporary.mkdir()
                for name, content in files.items():
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
                    log.warning(DAMAGED, key, "it has no manifest", self.quarantine(key))
                    temporary.rename(target)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def drop(self, key: str, name: str, manifest: bytes) -> bool:
        folder = self.folder(key)
        if not self._replace(folder / MANIFEST, manifest):
            return False
        with contextlib.suppress(FileNotFoundError):  # gc took it just now
            sync_folder(folder)  # a power failure must not keep the removal alone
            (folder / name).unlink()
        return True

    def bring_back(self, key: str, contents: Mapping[str, bytes], manifest: bytes) -> None:
        for name, content in {**contents, MANIFEST: manifest}.items():  # the manifest comes last
            if not self._replace(self.folder(key) / name, content):
                return
        with contextlib.suppress(FileNotFoundError):
            sync_folder(self.folder(key))

    def _replace(self, path: Path, content: bytes) -> bool:
        """Replace a file of an entry; returns False where the entry is gone, which it does not make anew."""
        temporary = beside(self.root / "tmp" / path.name)
        try:
            with room(path, len(content)):
                write_synced(temporary, content)
                temporary.replace(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def quarantine(self, key: str) -> str | None:
        grave = self.root / "quarantine" / f"{key}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}"
        try:
            self.folder(key).rename(grave)
        except FileNotFoundError:
            return None  # another process was faster, or gc took it
        return str(grave)

    def remove(self, key: str) -> None:
        grave = beside(self.root / "tmp" / key)
        try:
            self.folder(key).rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave, ignore_errors=True)

    def keys(self) -> list[str]:
        return sorted(folder.name for folder in self.root.glob("objects/??/*"))

    def files(self, key: str, names: Iterable[str], into: Path) -> list[Path]:
        paths = [self.folder(key) / name for name in names]
        return [path for path in paths if path.exists()]

    def note(self, key: str, row: dict[str, Any] | None) -> None:
        append_line(self.root / COSTS, json.dumps({"key": key, **(row or {})}))

    def notes(self) -> list[dict[str, Any]]:
        return list(self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines: one that was torn costs a prediction, but no plan."""
        file = self.root / COSTS
        for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and {"stage", "seconds"} <= row.keys():
                    yield row

    def news(self) -> set[str]:
        if self._news is None:
            self._news = News(self.root / COSTS)
        return self._news.take()

    def catch_up(self) -> None:
        """Do nothing: what others publish is seen at once."""

    def failure(self, key: str) -> bytes | None:
        try:
            return self._failed(key).read_bytes()
        except FileNotFoundError:
            return None

    def set_failure(self, key: str, content: bytes) -> None:
        replace_file(self._failed(key), content)

    def forget_failure(self, key: str) -> None:
        self._failed(key).unlink(missing_ok=True)

    def _failed(self, key: str) -> Path:
        return self.root / "failed" / f"{key}.json"

    def checkpoint(self, key: str, interval_s: float) -> FileCheckpoint:
        return FileCheckpoint(self.root / "tmp" / "checkpoints" / f"{key}.safetensors", interval_s)

    def clear_leftovers(self) -> None:
        self.leases.clear_stale()
        self.pins.keys()
        clear_unfinished(self.root / name for name in ("tmp", "tmp/checkpoints", "leases", "pins", "failed"))
        for folder in ("tmp/checkpoints", "failed"):
            for file in (self.root / folder).glob("[!.]*"):
                if (self.folder(file.stem) / MANIFEST).exists():  # its writer was killed after publishing
                    file.unlink(missing_ok=True)

    def clear_orphans(self) -> int:
        """Remove files of a day ago that their manifest does not name: their removal broke off."""
        removed = 0
        for folder in self.root.glob("objects/??/*"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged, or gone just now
                named = {MANIFEST, *json.loads((folder / MANIFEST).read_bytes())["files"]}
                for file in folder.iterdir():
                    if (
                        file.name not in named
                        and time.time() - file.stat().st_mtime > ORPHANED.total_seconds()
                    ):
                        file.unlink()
                        removed += 1
        return removed

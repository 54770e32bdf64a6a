"""The places that a store may lie in, for tests that hold for each of them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bdtune.engine.folder_place import FolderPlace
from bdtune.engine.node_cache import NodeCache
from bdtune.engine.object_place import ObjectPlace, _entry
from bdtune.engine.objects import open_bucket
from bdtune.engine.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

MANIFEST = "manifest.json"


@dataclass
class Stand:
    """One place, and what only a test does to it."""

    root: Path | str
    caches: Path

    def store(self, *, cache: Path | None = None) -> Store:
        """Return the store as another node would open it: without what was read or copied before."""
        return Store(self.opened(cache))

    def opened(self, cache: Path | None = None) -> FolderPlace | ObjectPlace:
        """Return the place as another node would open it."""
        if isinstance(self.root, Path):
            return FolderPlace(self.root)
        cache = cache or self.caches / uuid.uuid4().hex
        return ObjectPlace(open_bucket(self.root), NodeCache(cache, 10**9))

    @property
    def place(self) -> FolderPlace | ObjectPlace:
        return self.opened()

    def damage(self, key: str, name: str, change: Callable[[bytes], bytes | None]) -> None:
        """Change a file of an entry, or remove it where None is returned."""
        place = self.place
        if isinstance(place, FolderPlace):
            path = place.folder(key) / name
            changed = change(path.read_bytes())
            path.unlink() if changed is None else path.write_bytes(changed)
            return
        [path] = (
            [_entry(key)]
            if name == MANIFEST
            else [each.name for each in place.objects.list(f"payloads/{key}") if each.name.endswith(name)]
        )
        changed = change(place.objects.get(path).content)
        place.objects.delete(path) if changed is None else place.objects.put(path, changed)

    def graves(self) -> list[str]:
        """Return the names of what is in quarantine."""
        place = self.place
        if isinstance(place, FolderPlace):
            return sorted(path.name for path in (place.root / "quarantine").iterdir())
        return sorted({each.name.split("/")[1] for each in place.objects.list("quarantine")})

    def left(self) -> list[str]:
        """Return leases, pins, and files of attempts that nobody means."""
        place = self.place
        if isinstance(place, FolderPlace):
            folders = [place.root / name for name in ("leases", "pins", "tmp")]
            return [str(path) for folder in folders for path in folder.rglob("*") if path.is_file()]
        names = [each.name for kind in ("leases", "pins", "checkpoints") for each in place.objects.list(kind)]
        payloads = place.objects.list("payloads")
        return names + [
            each.name for each in payloads if place._unnamed(each.name.rpartition("/")[0], [each])
        ]

"""A store in this process's memory, for simulations: no file is written, and leases are not needed."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from bdtune.engine.key import digest_of
from bdtune.engine.manifest import FileEntry, Manifest
from bdtune.engine.store import ARRAYS, Store

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bdtune.engine.manifest import Cost
    from bdtune.engine.stage import Artefact


class NoLeases:
    """Leases where one process computes everything."""

    def try_hold(self, key: str) -> AbstractContextManager[bool]:
        return nullcontext(True)

    def held_by_other(self, key: str) -> bool:
        return False


class MemoryStore(Store):
    """A store whose entries are kept in memory; `published` counts how often each key was published."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.leases: Any = NoLeases()
        self.published: dict[str, int] = {}
        self._artefacts: dict[str, Artefact] = {}
        self._fresh: set[str] = set()

    def manifest(self, key: str) -> Manifest | None:
        return self._manifests.get(key)

    def open(self, key: str, **_: Any) -> Artefact | None:
        return self._artefacts.get(key)

    def news(self) -> set[str]:
        found, self._fresh = self._fresh, set()
        return found

    def look_again(self, key: str) -> None:
        """Nothing is believed to be absent."""

    def failure(self, key: str) -> None:
        return None

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
        size = sum(array.nbytes for array in artefact.arrays.values())
        made = Manifest(
            key=key,
            stage=preimage["stage"],
            kind=kind,
            preimage={},
            digest=digest_of(artefact.arrays, artefact.info),
            info=dict(artefact.info),
            files={ARRAYS: FileEntry(size, "")},
            cost=cost,
            made_for=made_for,
            commit="",
            environment={},
        )
        self._manifests[key], self._artefacts[key] = made, artefact
        self._fresh.add(key)
        self.published[key] = self.published.get(key, 0) + 1
        return made

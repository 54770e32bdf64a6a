"""What a store asks of the place where it lies: a folder, or objects in a bucket."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bdtune.engine.objects import is_address, open_bucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    import numpy as np

    from bdtune.engine.manifest import FileEntry
    from bdtune.engine.node_cache import Moved


DAMAGED = "store entry %s is damaged (%s); moved to %s, it will be computed again"
ORPHANED = timedelta(days=1)
"""After so long a file that no manifest names is nobody's."""


class Leases(Protocol):
    """At most one process works on a key. Leases only save work; correctness never rests on them."""

    task: str
    """What this process computes, as its driver calls it. Another process of the same task is its forerunner,
    which the driver knows to be gone; "": nobody's."""

    def try_hold(self, key: str) -> AbstractContextManager[bool]:
        """Hold the lease of `key` inside the block; yields False when somebody alive holds it."""

    def held_by_other(self, key: str) -> bool:
        """Return whether a living process other than this one holds the lease."""

    def clear_stale(self) -> None:
        """Remove the leases of processes that are gone."""


class Pins(Protocol):
    """The keys that running sweeps use, so that `cache gc` leaves them alone."""

    def held(self) -> AbstractContextManager[str]:
        """Keep pins while the block runs and give their name; keys added before are pinned, too."""

    def has(self, name: str) -> bool:
        """Return whether pins of this name are here: by its driver's a node knows the store."""

    def add(self, key: str) -> None:
        """Pin a key, as soon as pins are held."""

    def keys(self, *, own: bool = True) -> set[str]:
        """Return the keys that running sweeps use; without its `own`, those of others.

        Pins of sweeps that are gone are removed.
        """


class Checkpoint(Protocol):
    """The slot of one key; see `bdtune.engine.stage.CheckpointSlot`."""

    interval_s: float
    """Seconds of work between two saves; 0: at every tick."""

    def due(self) -> bool:
        """Return whether enough time has passed since the last save."""

    def save(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        """Replace the stored state atomically, perhaps in the background."""

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the last state saved, or None."""

    def close(self, *, keep: bool) -> None:
        """Wait until what is on its way is there; what still waits is sent, too, to `keep` it."""

    def clear(self) -> None:
        """Forget the state: the result is published, or cannot be reached from here."""


class Place(Protocol):
    """Where a store lies. An entry appears under its key at once and whole, or not at all.

    Contents are bytes here: `Store` knows what they mean and whether they are right.
    """

    @property
    def root(self) -> Path | str:
        """By which any process finds the place: a folder, or an address."""

    @property
    def layout(self) -> str:
        """Where below the root an entry's files lie, in words."""

    @property
    def copies(self) -> bool:
        """Whether each node keeps copies of what it has read."""

    @property
    def moved(self) -> Moved:
        """What this process has read from a bucket and from this node's copies; nothing of a folder."""

    @property
    def leases(self) -> Leases:
        """Who works on what."""

    @property
    def pins(self) -> Pins:
        """What running sweeps use."""

    @property
    def wait_s(self) -> float:
        """Seconds between two looks at what another process is doing."""

    @property
    def readers(self) -> int:
        """Reads that are best made at a time."""

    def where(self, key: str) -> str:
        """Return where the files of an entry lie, or would lie: a folder or an address."""

    def manifest(self, key: str) -> bytes | None:
        """Return the manifest of a published key, else None."""

    def read(self, key: str, name: str, entry: FileEntry, *, copies: bool = True) -> bytes:
        """Return a payload file, perhaps this node's copy; raises `OSError` when it cannot be read."""

    def commit(self, key: str, contents: Mapping[str, bytes], manifest: bytes, *, force: bool) -> None:
        """Publish an entry; when another process was faster, its copy stands.

        To `force` it is to have it survive a power failure. Raises `StoreError` or `OutageError`.
        """

    def drop(self, key: str, name: str, manifest: bytes) -> bool:
        """Replace an entry's manifest by one that does not name a file, then remove that file.

        Returns whether it was done: another process may have taken or changed the entry since it was read.
        """

    def bring_back(self, key: str, contents: Mapping[str, bytes], manifest: bytes) -> None:
        """Write all payload files of an entry of which some were dropped, then replace its manifest."""

    def quarantine(self, key: str) -> str | None:
        """Move a damaged entry away and return where to; None when it is gone already."""

    def remove(self, key: str) -> None:
        """Delete an entry; readers see it whole or not at all."""

    def keys(self) -> list[str]:
        """Return the keys of all entries, in order; of a folder also those without a manifest."""

    def files(self, key: str, names: Iterable[str], into: Path) -> list[Path]:
        """Return files of an entry as paths; a place that is no folder copies them below `into`."""

    def note(self, key: str, row: dict[str, Any] | None) -> None:
        """Note that a key was published, and what it took; `row` is None if it was computed elsewhere."""

    def notes(self) -> list[dict[str, Any]]:
        """Return what all processes noted of what it took."""

    def news(self) -> set[str]:
        """Return the keys that any process published since the last call; the first one only begins."""

    def catch_up(self) -> None:
        """Read at once what other processes have published, so that it is in the news."""

    def failure(self, key: str) -> bytes | None:
        """Return what was written of a key's last failure, if anything."""

    def set_failure(self, key: str, content: bytes) -> None:
        """Write something of a key's last failure."""

    def forget_failure(self, key: str) -> None:
        """Remove it."""

    def checkpoint(self, key: str, interval_s: float) -> Checkpoint:
        """Return the checkpoint slot of a key."""

    def clear_leftovers(self) -> None:
        """Remove what processes that are gone were writing or holding."""

    def clear_orphans(self) -> int:
        """Remove what only a look at everything finds: for gc. Returns how many files."""


def place_at(root: Path | str, *, create: bool = True) -> Place:
    """Return the place at a folder, or at an address such as s3://bucket/prefix."""
    if is_address(str(root)):
        from bdtune.engine.object_place import ObjectPlace

        return ObjectPlace(open_bucket(str(root)))
    from bdtune.engine.folder_place import FolderPlace

    return FolderPlace(Path(root), create=create)

"""`bdtune cache`: what the store holds, why two keys differ, whether it is whole, and making room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.errors import Problem, UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.manifest import Manifest
    from bdtune.engine.store import Store


def listing(store: Store) -> list[dict[str, Any]]:
    """Return all entries, newest last."""
    rows = [
        {
            "key": manifest.key,
            "stage": manifest.stage,
            "bytes": manifest.size,
            "seconds": round(manifest.cost.seconds, 3),
            "created": manifest.created,
        }
        for manifest in store.entries()
    ]
    return sorted(rows, key=lambda row: str(row["created"]))


@dataclass(frozen=True)
class Difference:
    """One place in which the recipes of two entries differ."""

    path: str
    first: Any
    second: Any


def why(store: Store, first: str, second: str) -> list[Difference]:
    """Return what differs between the recipes of two entries; raises `UserError` for unknown keys."""
    one, two = (dict(_flat(_entry(store, key).preimage)) for key in (first, second))
    paths = sorted(one.keys() | two.keys())
    return [
        Difference(path, one.get(path), two.get(path)) for path in paths if one.get(path) != two.get(path)
    ]


def _entry(store: Store, key: str) -> Manifest:
    known = [folder.name for folder in store.root.glob("objects/??/*")]
    found = [name for name in known if name.startswith(key)]
    if len(found) != 1:
        got = f"'{key}'" if not found else f"'{key}', which begins {len(found)} keys"
        expected = "expected the key of an entry, or its beginning; `bdtune cache ls` lists them"
        raise UserError(Problem("key", expected, got, hint=nearest(key, known)))
    manifest = store.manifest(found[0])
    if manifest is None:
        raise UserError(f"entry {found[0]} was damaged and is in quarantine now")
    return manifest


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def verify(store: Store) -> tuple[int, list[str]]:
    """Read every entry with its digests; returns how many are whole, and the keys now in quarantine."""
    whole, damaged = 0, []
    for folder in sorted(store.root.glob("objects/??/*")):
        if store.open(folder.name) is None:
            damaged.append(folder.name)
            if folder.exists():  # without a manifest it is no entry
                store.quarantine(folder.name, "it has no manifest")
        else:
            whole += 1
    return whole, damaged


@dataclass(frozen=True)
class Cleanup:
    """What gc removed, or would remove: entries and bytes; bytes that are left; entries that are in use."""

    entries: int
    bytes: int
    left: int
    kept_in_use: int


def collect(store: Store, most_bytes: int, *, dry_run: bool = False) -> Cleanup:
    """Remove entries until at most so many bytes are left: those cheapest to compute per byte go first.

    What a running sweep uses stays. Derived results go last: they are small, and later keys are made of their
    digests, so without them what was computed from them is not found again, nor a finished sweep's report.
    """
    used = store.pins.keys()
    entries = list(store.entries())
    left = sum(manifest.size for manifest in entries)
    removed, freed = 0, 0
    for manifest in sorted(entries, key=_dispensable):
        if left - freed <= most_bytes:
            break
        if manifest.key in used or store.leases.held_by_other(manifest.key) or not manifest.files:
            continue
        if not dry_run:
            store.remove(manifest.key)
        removed += 1
        freed += manifest.size
    return Cleanup(removed, freed, left - freed, sum(manifest.key in used for manifest in entries))


def _dispensable(manifest: Manifest) -> tuple[bool, float, str]:
    """Sort key of entries, those to be removed first first; ties by age."""
    return manifest.kind == "derive", manifest.cost.seconds / max(1, manifest.size), manifest.created

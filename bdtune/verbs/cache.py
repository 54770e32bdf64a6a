"""`bdtune cache`: what the store holds, why two keys differ, whether it is whole, and making room."""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bdtune.errors import Problem, UserError, nearest
from bdtune.report import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bdtune.engine.manifest import Manifest
    from bdtune.engine.store import Store
    from bdtune.trials.results import TrialResult


MOST_ALIKE = 20
"""Entries of one result that are compared."""


def listing(store: Store) -> list[dict[str, Any]]:
    """Return all entries, newest last."""
    rows = [
        {
            "key": manifest.key,
            "stage": manifest.stage,
            "bytes": manifest.stored,
            "dropped": manifest.size - manifest.stored,
            "seconds": round(manifest.cost.seconds, 3),
            "created": manifest.created,
        }
        for manifest in store.entries()
    ]
    return sorted(rows, key=lambda row: str(row["created"]))


@dataclass(frozen=True)
class Difference:
    """One place in which two recipes differ."""

    stage: str
    """Whose recipe it is; of two trials "trial"."""
    path: str
    first: Any
    second: Any


def why(store: Store, first: str, second: str, run_dir: Path | None = None) -> list[Difference]:
    """Return what makes two entries, or two trials, differ; raises `UserError` for unknown keys and ids.

    An input that differs is followed to the stage that made it: the knobs at the root are returned. Trials
    are those of the sweeps of `run_dir`.
    """
    trials = [_trial(run_dir, word) for word in (first, second)]
    if trials[0] is None or trials[1] is None:
        if any(trials):
            expected = "expected two keys, or the ids of two trials"
            raise UserError(Problem("", expected, f"'{first}' and '{second}'"))
        return _Roots(store).of(_entry(store, first), _entry(store, second))
    one, two = trials[0].params, trials[1].params
    return [
        Difference("trial", path, one.get(path), two.get(path))
        for path in dict.fromkeys([*one, *two])
        if one.get(path) != two.get(path)
    ]


class _Roots:
    """Follows the inputs of two entries to what differs first."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._seen: set[tuple[str, str]] = set()

    def of(self, first: Manifest, second: Manifest) -> list[Difference]:
        """Return the differences of the earliest stages first; one that several stages have only once."""
        found: dict[tuple[str, str, str], Difference] = {}
        for each in self._walk(first, second):
            found.setdefault((each.path, repr(each.first), repr(each.second)), each)
        knobs = [
            each for each in found.values() if each.path != "seed"
        ]  # it follows from the seed of a trial
        return knobs or list(found.values())

    def _walk(self, first: Manifest, second: Manifest) -> Iterator[Difference]:
        if (first.key, second.key) in self._seen:
            return
        self._seen.add((first.key, second.key))
        if first.stage != second.stage:
            yield Difference("", "stage", first.name, second.name)
            return
        own = []
        for path, values in differing(first, second):
            parents = self._parents(path, *values)
            if parents is None:
                own.append(Difference(first.name, path, *map(_text, values)))
            else:
                yield from self._walk(*parents)
        yield from own

    def _parents(self, path: str, *values: Any) -> tuple[Manifest, Manifest] | None:
        """Return the entries that an input names by keys or digests: of equal results the most alike ones."""
        if not path.startswith("inputs.") or not all(isinstance(value, str) for value in values):
            return None
        if path.endswith(".key"):
            made = [[found] if (found := self.store.manifest(value)) else [] for value in values]
        else:
            made = [self._by_digest.get(value, []) if path.endswith(".digest") else [] for value in values]
        pairs = [(one, two) for one in made[0][:MOST_ALIKE] for two in made[1][:MOST_ALIKE]]
        return min(pairs, key=_distance, default=None)

    @cached_property
    def _by_digest(self) -> dict[str, list[Manifest]]:
        found: dict[str, list[Manifest]] = defaultdict(list)
        for manifest in self.store.entries():
            found[manifest.digest].append(manifest)
        return found


def differing(first: Manifest, second: Manifest) -> list[tuple[str, tuple[Any, Any]]]:
    """Return the dotted paths in which the recipes of two entries differ, each with both values."""
    one, two = dict(_flat(first.preimage)), dict(_flat(second.preimage))
    paths = sorted(one.keys() | two.keys())
    return [(path, (one.get(path), two.get(path))) for path in paths if one.get(path) != two.get(path)]


def _distance(pair: tuple[Manifest, Manifest]) -> tuple[bool, int]:
    return pair[0].stage != pair[1].stage, len(differing(*pair))


def _text(value: Any) -> Any:
    """Return a value that can be compared and printed: a list as its text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _trial(run_dir: Path | None, word: str) -> TrialResult | None:
    """Return the one trial whose id begins so, from the reports of all sweeps, or None."""
    found: dict[str, TrialResult] = {}
    for file in run_dir.glob("sweeps/*/sweep.json") if run_dir else ():
        with contextlib.suppress(UserError):
            trials = files.read(file.parent).trials
            found |= {trial.id: trial for trial in trials if trial.id.startswith(word)}
    return next(iter(found.values())) if len(found) == 1 else None


def _entry(store: Store, key: str) -> Manifest:
    known = store.every_key()
    found = [name for name in known if name.startswith(key)]
    if len(found) != 1:
        got = f"'{key}'" if not found else f"'{key}', which begins {len(found)} keys"
        expected = "expected the key of an entry or the id of a trial, or its beginning"
        hint = (
            f"{nearest(key, known)} 'bdtune cache ls' lists keys, 'bdtune report NAME --json' trials".strip()
        )
        raise UserError(Problem("key", expected, got, hint=hint))
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
    """Read every entry with its digests; returns how many are whole, and the keys now in quarantine.

    One whose arrays were dropped is as it should be.
    """
    whole, damaged = 0, []
    for key in store.every_key():
        if not store.is_sound(key):
            damaged.append(key)
            store.quarantine(key, "it has no manifest")  # unless it was moved away already
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
    left = sum(manifest.stored for manifest in entries)
    removed, freed = 0, 0
    for manifest in sorted(entries, key=_dispensable):
        if left - freed <= most_bytes:
            break
        if manifest.key in used or store.leases.held_by_other(manifest.key) or not manifest.files:
            continue
        if not dry_run:
            store.remove(manifest.key)
        removed += 1
        freed += manifest.stored
    if not dry_run:
        store.place.clear_orphans()
    return Cleanup(removed, freed, left - freed, sum(manifest.key in used for manifest in entries))


def _dispensable(manifest: Manifest) -> tuple[bool, float, str]:
    """Sort key of entries, those to be removed first first; ties by age."""
    return manifest.kind == "derive", manifest.cost.seconds / max(1, manifest.stored), manifest.created


def remove(store: Store, word: str) -> Manifest:
    """Remove one entry, by its key or the beginning of it; returns what it was.

    Raises `UserError` where there is no such entry, or a running sweep uses it.
    """
    manifest = _entry(store, word)
    used = store.pins.keys()
    if manifest.key in used or store.leases.held_by_other(manifest.key):
        expected = "expected an entry that no running sweep uses"
        raise UserError(Problem("key", expected, manifest.key, hint="Wait until that sweep has ended"))
    store.remove(manifest.key)
    return manifest

"""The first stage of a trial whose recorded result is not what was computed again, and why."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from safetensors.numpy import load

from bdtune.engine.key import digest_of
from bdtune.engine.store import ARRAYS
from bdtune.verbs.cache import differing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.manifest import Manifest
    from bdtune.engine.resolve import Resolver
    from bdtune.trials.known import KnownTrial
    from bdtune.trials.ledger import Entry

MOST = 3
"""Differences that are named one by one."""


@dataclass(frozen=True)
class StageDifference:
    """A stage that is not the same."""

    role: str
    what: Literal["settings", "recorded", "damaged", "recipe", "content"]
    """settings: the trial's are another trial's; recorded: nothing is known of its result; damaged: its files
    are not what they were; recipe: it was computed by other settings, seed, code or inputs; content: its
    result has other bits."""
    why: str


def first_difference(known: KnownTrial, entry: Entry, fresh: Resolver) -> StageDifference | None:
    """Return the first stage that is not the same, parents first; None where all are.

    `entry` is the trial that the recorded settings name now, computed in another store.
    """
    roles = entry.graph.roles
    for recipe, node in entry.graph.stages.items():
        role, now = roles[recipe], fresh.manifest(node)
        assert now is not None  # it was just computed
        use = known.result.stages.get(role)
        before = None if use is None else known.manifest(use.key)
        if before is None:
            return StageDifference(role, "recorded", "the sweep says nothing of its result")
        if why := _damage(known, before):
            return StageDifference(role, "damaged", why)
        if before.key != now.key:
            return StageDifference(role, "recipe", _recipes(before, now))
        if before.digest != now.digest:
            return StageDifference(role, "content", _contents(known, before, fresh, now))
    if entry.id != known.result.id:
        return StageDifference("", "settings", f"the recorded settings are those of trial {entry.id}")
    return None


def _damage(known: KnownTrial, manifest: Manifest) -> str:
    """Return why an entry's files are not those of its manifest; nothing is moved. "" where all is well."""
    try:
        contents = known.store.contents(manifest.key)
    except (OSError, ValueError) as error:
        return f"its files cannot be read: {error}"
    for name, entry in manifest.files.items() if contents else ():  # none: imported without its files
        if hashlib.sha256(contents[name]).hexdigest() != entry.sha256:
            return f"{name} has other bytes than when it was written"
    if contents and not manifest.dropped and digest_of(_arrays(contents), manifest.info) != manifest.digest:
        return "its content is not what its digest says"
    return ""


def _arrays(contents: Mapping[str, bytes]) -> Mapping[str, np.ndarray]:
    return load(contents[ARRAYS]) if ARRAYS in contents else {}


def _recipes(before: Manifest, now: Manifest) -> str:
    """Return which parts of a recipe differ: "seed 12, now 13"."""
    found = differing(before, now)
    shown = [f"{path} {one}, now {two}" for path, (one, two) in found[:MOST]]
    return "; ".join([*shown, *([f"and {len(found) - MOST} more"] if len(found) > MOST else [])])


def _contents(known: KnownTrial, before: Manifest, fresh: Resolver, now: Manifest) -> str:
    """Return which arrays and numbers differ, and by how much."""
    found = [
        f"{name} {before.info.get(name)}, now {now.info.get(name)}"
        for name in dict.fromkeys([*before.info, *now.info])
        if before.info.get(name) != now.info.get(name)
    ]
    artefact = fresh.store.open(now.key)
    arrays, others = _arrays(known.store.contents(before.key)), artefact.arrays if artefact else {}
    for name in arrays.keys() & others.keys():
        one, two = arrays[name], others[name]
        if one.shape != two.shape:
            found.append(f"{name} has shape {list(one.shape)}, now {list(two.shape)}")
        elif one.tobytes() != two.tobytes():
            apart = np.abs(one.astype(np.float64) - two.astype(np.float64)).max()
            found.append(f"{name} differs by up to {apart:.3g}")
    more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    return ("; ".join(sorted(found)[:MOST]) + more) or "other bits"

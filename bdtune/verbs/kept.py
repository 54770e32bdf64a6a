"""Models and verdicts of a trial as files for its run in MLflow, where a sweep asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.engine.manifest import MANIFEST
from bdtune.engine.store import ARRAYS
from bdtune.trials.chain import CLASSIFIER

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bdtune.config.sweep import Kept
    from bdtune.engine.resolve import Resolver
    from bdtune.trials.ledger import Entry


def kept_files(entry: Entry, resolver: Resolver, kept: Iterable[Kept], into: Path) -> list[tuple[Path, str]]:
    """Return the files of a trial's artefacts that are asked for, with their folders among its artifacts.

    "model": the defended classifier's weights; "verdicts": the results that the defense's diagnosis reads.
    From a bucket they are copied below `into`, until MLflow has them.
    """
    names = {"model": (CLASSIFIER,), "verdicts": entry.spec.defense.evidence}
    found = []
    for kind in kept:
        for name in names[kind]:
            node = entry.graph.chain.get(name)
            key = resolver.key(node) if node is not None else None
            if key is None:  # the trial failed before
                continue
            folder = kind if kind == "model" else f"{kind}/{name}"
            found += [(path, folder) for path in resolver.store.files(key, (ARRAYS, MANIFEST), into)]
    return found

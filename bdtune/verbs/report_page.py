"""`bdtune report NAME --html`: the page of a sweep, with its figures beside it."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from bdtune.engine.store import Store
from bdtune.errors import Problem, UserError
from bdtune.report.page.build import Inputs, write
from bdtune.trials.outcome import with_all_curves

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.engine.manifest import Manifest
    from bdtune.trials.results import SweepResult
    from bdtune.verbs.sweep import SweepOutcome


def written(outcome: SweepOutcome) -> list[Path]:
    """Write a report's page into its sweep's folder; return the paths of the page and of its figures.

    Raises `UserError` where the folder cannot be written.
    """
    folder = outcome.folder
    assert folder is not None, "a report knows its folder"
    if not os.access(folder, os.W_OK):
        raise UserError(Problem("--html", "expected a sweep whose folder can be written", str(folder)))
    store = Store(folder.parent.parent / "store", create=False)
    pictures = sorted([*folder.glob("best-*.png"), *folder.glob("case-*.png"), *folder.glob("search-*.png")])
    manifests = _manifests(outcome.result, store)
    curves = partial(with_all_curves, store=store)
    return write(Inputs(outcome.spec, outcome.result, outcome.why, manifests, pictures, curves), folder)


def _manifests(result: SweepResult, store: Store) -> list[Manifest]:
    """Return what the store says of the stages of all trials; of some it may know nothing any more."""
    keys = dict.fromkeys(use.key for trial in result.trials for use in trial.stages.values())
    return [manifest for key in keys if (manifest := store.manifest(key)) is not None]

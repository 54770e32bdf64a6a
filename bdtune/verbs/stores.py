"""Where the store is: of a run directory, and of a sweep, which keeps the one that it began with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bdtune.engine.objects import check, is_address, open_bucket
from bdtune.engine.store import Store
from bdtune.errors import Problem, UserError
from bdtune.trials.sweep_folder import STORE, elsewhere, note_store, own_store, store_of
from bdtune.verbs.place import folder

if TYPE_CHECKING:
    from collections.abc import Sequence


def store_at(run_dir: Path, given: str | None = None) -> Path | str:
    """Return where a run directory's store is: as given, else BDTUNE_STORE, else as at the last time.

    Without any of these it is the folder `store` of the run directory. Sweeps that were begun come first: see
    `store_for`.
    """
    noted = run_dir / STORE
    named = given or os.environ.get("BDTUNE_STORE") or (noted.read_text().strip() if noted.is_file() else "")
    if not named:
        return own_store(run_dir)
    if not is_address(named):
        return folder("--store", Path(named))
    return named if named.endswith("://") else named.rstrip("/")


def store_for(run_dir: Path, begun: Sequence[Path], given: str | None = None) -> Path | str:
    """Return where sweeps' results are, or are to be: those whose folders are `begun` stay where they are.

    Raises `UserError` with each sweep that has its results elsewhere.
    """
    at = store_at(run_dir, given) if given or not begun else store_of(begun[0])
    problems = [problem for each in begun if (problem := elsewhere(each, at))]
    if problems:
        raise UserError(problems)
    return at


def checked(at: Path | str, *, write: bool = True, alone: bool = False) -> Path | str:
    """Return where a store is, once it is known to answer; a folder is not looked at.

    Only a process that is `alone` may keep a store in its memory. Raises `UserError` when the store cannot be
    reached, or its server takes no notice of conditions.
    """
    if isinstance(at, str):
        if at.startswith("memory://") and not alone:
            expected = "expected a folder or a bucket, as the processes of a sweep share no memory"
            hint = "'bdtune run' is one process, for which memory:// is enough"
            raise UserError(Problem("--store", expected, at, hint=hint))
        check(open_bucket(at), write=write)
    return at


def to_write(run_dir: Path, at: Path | str) -> Store:
    """Open a store, and note in the run directory where it is, so that later commands find it."""
    if not str(at).startswith("memory://"):
        note_store(run_dir, at, run_dir)
    return Store(at)


def to_read(at: Path | str) -> Store:
    """Open a store that may not be there yet."""
    return Store(checked(at, write=False), create=False)


def of_sweep(sweep: Path, given: str | None = None) -> Store:
    """Open the store of a sweep that was begun, by its folder, to read it."""
    return to_read(store_for(sweep.parent.parent, [sweep], given))


def existing_store(run_dir: Path, given: str | None = None) -> Store:
    """Open a store that is there already; raises `UserError` where a folder has none."""
    at = store_at(run_dir, given)
    if isinstance(at, Path) and not at.exists():
        raise UserError(f"no store at {at}; run a sweep first, or give its --out or --store")
    return to_read(at)

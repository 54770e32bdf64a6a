"""Which store a run directory uses: its own folder, or the one that `--store` names."""

from __future__ import annotations

import os
from pathlib import Path

from bdtune.engine.files import replace_file
from bdtune.engine.objects import check, is_address, open_bucket
from bdtune.engine.store import Store
from bdtune.errors import Problem, UserError
from bdtune.verbs.place import folder

NOTE = "store.txt"
"""In a run directory: where its store is, once that was not in the directory itself."""


def store_at(run_dir: Path, given: str | None = None) -> Path | str:
    """Return where a run directory's store is: as given, else BDTUNE_STORE, else as at the last time.

    Without any of these it is the folder `store` of the run directory.
    """
    noted = run_dir / NOTE
    named = given or os.environ.get("BDTUNE_STORE") or (noted.read_text().strip() if noted.is_file() else "")
    if not named:
        return run_dir / "store"
    return named if is_address(named) else folder("--store", Path(named))


def checked(
    run_dir: Path, given: str | None = None, *, write: bool = True, alone: bool = False
) -> Path | str:
    """Return where a run directory's store is, once it is known to answer; a folder is not looked at.

    Only a process that is `alone` may keep a store in its memory. Raises `UserError` when the store cannot be
    reached, or its server takes no notice of conditions.
    """
    at = store_at(run_dir, given)
    if isinstance(at, str):
        if at.startswith("memory://") and not alone:
            expected = "expected a folder or a bucket, as the processes of a sweep share no memory"
            hint = "'bdtune run' is one process, for which memory:// is enough"
            raise UserError(Problem("--store", expected, at, hint=hint))
        check(open_bucket(at), write=write)
    return at


def opened(run_dir: Path, at: Path | str, *, write: bool = True) -> Store:
    """Open a run directory's store; to `write`, note where it is, so that later commands find it."""
    if write:
        _note(run_dir, at)
    return Store(at, create=write)


def existing_store(run_dir: Path, given: str | None = None) -> Store:
    """Open a store that is there already; raises `UserError` where a folder has none."""
    at = store_at(run_dir, given)
    if isinstance(at, Path) and not at.exists():
        raise UserError(f"no store at {at}; run a sweep first, or give its --out or --store")
    return opened(run_dir, checked(run_dir, given, write=False), write=False)


def _note(run_dir: Path, at: Path | str) -> None:
    if at == run_dir / "store":
        (run_dir / NOTE).unlink(missing_ok=True)
    elif not str(at).startswith("memory://"):
        replace_file(run_dir / NOTE, f"{at}\n".encode())

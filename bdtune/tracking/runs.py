"""The runs that MLflow is to hold of a sweep: one file each, in `sweeps/<name>/runs/`.

A file is named `<id>.<signature>.json`, so that a listing shows what there is. The id is a trial's, or
`sweep` for the parent run. A run that changes gets a new signature, and its file takes the place of the old.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bdtune.engine.files import replace_file
from bdtune.engine.key import key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FOLDER = "runs"
SWEEP = "sweep"
"""Id of the parent run; a trial's id is a hash."""


@dataclass(frozen=True)
class Run:
    """One run in MLflow's terms; times are Unix times in ms."""

    name: str
    status: str
    started: int
    time: int
    """Its end, and the time stamp of its metrics: delivering a metric again stores nothing twice."""
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Sequence[tuple[str, float, int]] = ()
    """Name, finite value, step."""
    dataset: Mapping[str, str] | None = None
    """Name, digest, source and context."""
    artifacts: Sequence[tuple[str, str]] = ()
    """A file, relative to the run directory or absolute, and its folder among the artifacts."""
    best: Sequence[str] = ()
    """Of the parent run: the ids of the trials whose runs are marked as best."""


class Runs:
    """The runs of one sweep; any number of processes may write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def write(self, run_id: str, identity: Any, run: Run) -> bool:
        """Write a run unless it has the same identity already; return whether it was new.

        `identity` is JSON: what makes the run worth delivering again when it changes.
        """
        if self.has(run_id, identity):
            return False
        target = self._file(run_id, key_of(identity))
        # Files from before the write: two writers cannot remove each other's.
        outdated = set(self.folder.glob(f"{run_id}.*.json")) - {target}
        content = json.dumps(asdict(run), separators=(",", ":"), allow_nan=False)
        replace_file(target, content.encode())
        for file in outdated:
            file.unlink(missing_ok=True)
        return True

    def has(self, run_id: str, identity: Any) -> bool:
        """Return whether a run of this identity is written."""
        return self._file(run_id, key_of(identity)).exists()

    def signatures(self) -> dict[str, str]:
        """Return each run's signature by its id; of two files that a killed writer left, the newer counts."""
        files = sorted(self.folder.glob("[!.]*.*.json"), key=_modified)
        return dict(file.name.split(".")[:2] for file in files)

    def read(self, run_id: str, signature: str | None = None) -> Run | None:
        """Return a run, by default as it is now; None where there is none (any more)."""
        signature = signature or self.signatures().get(run_id)
        if signature is None:
            return None
        try:
            return Run(**json.loads(self._file(run_id, signature).read_text()))
        except FileNotFoundError:  # another process replaced it
            return None

    def _file(self, run_id: str, signature: str) -> Path:
        return self.folder / f"{run_id}.{signature}.json"


def _modified(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:  # another process replaced it
        return 0

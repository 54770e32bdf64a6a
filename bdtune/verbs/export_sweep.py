"""`bdtune export SWEEP`: a sweep as a folder that another machine can import, report and verify.

export.json         what it is, and the SHA-256 of every other file
sweep/              its settings, results, tables and pictures
manifests/KEY.json  what is known of each stage's result: recipe, digest, cost, what computed it
store/KEY/          those results that were asked for, with their files
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import yaml

import bdtune
from bdtune.engine.files import replace_file
from bdtune.engine.key import key_of
from bdtune.engine.manifest import git_commit
from bdtune.report import files
from bdtune.trials.belongings import roles_of
from bdtune.trials.known import MANIFESTS, KnownTrial
from bdtune.trials.sweep_folder import ASKED, IDENTITY, SETTINGS
from bdtune.verbs.export_trial import must_be_empty
from bdtune.verbs.home import settings_of
from bdtune.verbs.tables import counted, size

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from bdtune.config.sweep import Kept
    from bdtune.trials.results import SweepResult

FORMAT = 1
CONTENTS, SWEEP, STORE = "export.json", "sweep", "store"
KEPT_FILES = (IDENTITY, "sweep.json", "report.*", "*.png", "optuna.journal")
"""What is copied of a sweep's folder as it is."""
SETTLED = ("device", "precision")


@dataclass(frozen=True)
class SweepExport:
    """What was written."""

    folder: Path
    name: str
    trials: int
    bytes: int
    files: int
    needs: tuple[str, ...]
    """Files of this machine that its trials name; they must lie at the same places elsewhere."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "folder": str(self.folder), "needs": list(self.needs)}

    def line(self) -> str:
        """Return what a person is told."""
        needs = f"\nnot in it, though its trials name them: {', '.join(self.needs)}" if self.needs else ""
        what = f"{counted(self.trials, 'trial')} in {counted(self.files, 'file')}, {size(self.bytes)}"
        return f"written to {self.folder}: {what}{needs}\nnext, elsewhere: bdtune import {self.folder.name}"


def export_sweep(folder: Path, home: Path, to: Path, *, keep: Collection[Kept] = ()) -> SweepExport:
    """Write a sweep into a new or empty folder, as its last report has it.

    `keep`: "model" adds the classifiers, "verdicts" what says which rows each defense kept and suspected, and
    what the attacks trained. Raises `UserError` where there is no report, or what is to be kept is not there.
    """
    must_be_empty(to)
    result, spec = files.read(folder), settings_of(folder)
    trials = [KnownTrial(home, each, folder.name, spec.trial.data_root) for each in result.trials]
    stored = {key: known for known in trials for key in _keys(known, keep)}
    _write_sweep(folder, result, to / SWEEP)
    for known in trials:
        for use in known.result.stages.values():
            manifest = known.manifest(use.key)
            if manifest is not None:
                replace_file(to / MANIFESTS / f"{use.key}.json", manifest.to_json())
    for key, known in stored.items():
        for name, content in known.store.contents(key).items():
            replace_file(to / STORE / key / name, content)
    sums = {str(file.relative_to(to)): _sum(file) for file in sorted(to.rglob("*")) if file.is_file()}
    needs = sorted({str(value) for text in _texts(folder) for value in _user_files(text)})
    about = {
        "format": FORMAT,
        "bdtune": bdtune.__version__,
        "commit": git_commit(),
        "name": folder.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "keep": sorted(keep),
        "needs": needs,
        "files": sums,
    }
    replace_file(to / CONTENTS, json.dumps(about, indent=1).encode())  # last: without it, it is no export
    size = sum(file.stat().st_size for file in to.rglob("*") if file.is_file())
    return SweepExport(to, folder.name, len(trials), size, len(sums) + 1, tuple(needs))


def _keys(known: KnownTrial, keep: Collection[Kept]) -> Iterator[str]:
    """Yield the keys of a finished trial's results that are asked for; all must be in the store."""
    if known.result.status == "done" and keep:
        for role in roles_of(known, keep):
            known.artefact(role)
            yield known.result.stages[role].key


def _write_sweep(folder: Path, result: SweepResult, to: Path) -> None:
    for pattern in KEPT_FILES:
        for file in folder.glob(pattern):
            replace_file(to / file.name, file.read_bytes())
    last = yaml.safe_load((folder / SETTINGS).read_text(encoding="utf-8"))
    asked = [*folder.glob(f"{ASKED}/[!.]*.yaml")] or [folder / SETTINGS]
    every = [yaml.safe_load(file.read_text(encoding="utf-8")) for file in asked]
    replace_file(to / SETTINGS, _yaml(settled(last, result)))
    for settings in (settled(each, result) for each in every):
        replace_file(to / ASKED / f"{key_of(settings)}.yaml", _yaml(settings))


def settled(settings: dict[str, Any], result: SweepResult) -> dict[str, Any]:
    """Return a run's settings without what belongs to this machine, and with what it decided written out.

    Device, precision and pipeline enter a trial's id: left to "auto" they would be another machine's.
    """
    trial = {**settings["trial"], "data_root": None}
    numerics = dict(trial["numerics"])
    for name in SETTLED:
        numerics[name] = _one(result, f"numerics.{name}", numerics[name])
    trial |= {"numerics": numerics, "pipeline": _one(result, "pipeline", trial["pipeline"])}
    return {**settings, "trial": trial}


def _one(result: SweepResult, path: str, otherwise: Any) -> Any:
    """Return the value that all trials have of a setting, if it is one."""
    found = {trial.params[path] for trial in result.trials if path in trial.params}
    return found.pop() if len(found) == 1 else otherwise


def _yaml(settings: dict[str, Any]) -> bytes:
    text: str = yaml.safe_dump(settings, sort_keys=False)
    return text.encode()


def _texts(folder: Path) -> Iterator[Any]:
    for file in [folder / SETTINGS, *folder.glob(f"{ASKED}/[!.]*.yaml")]:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        raw["trial"] = {key: value for key, value in raw["trial"].items() if key != "data_root"}
        yield raw


def _user_files(raw: Any) -> Iterator[str]:
    """Yield the absolute paths in settings: files that an attack reads."""
    if isinstance(raw, dict | list):
        for value in raw.values() if isinstance(raw, dict) else raw:
            yield from _user_files(value)
    elif isinstance(raw, str) and raw.startswith("/"):
        yield raw


def _sum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

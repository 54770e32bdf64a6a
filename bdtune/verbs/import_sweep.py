"""`bdtune import`: takes a sweep in that another machine exported."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from bdtune.config.load import load_sweep
from bdtune.engine.files import file_lock, replace_file
from bdtune.engine.owner import beside
from bdtune.errors import Problem, UserError
from bdtune.trials.known import MANIFESTS
from bdtune.trials.sweep_folder import ASKED, SETTINGS, SWEEPS, find_place, identity_of, note_store
from bdtune.verbs.export_sweep import CONTENTS, FORMAT, STORE, SWEEP
from bdtune.verbs.stores import checked, store_at, to_write

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.store import Store
    from bdtune.trials.sweep_folder import Place


@dataclass(frozen=True)
class Imported:
    """A sweep that was taken in."""

    name: str
    wanted: str
    """Its name where it was exported."""
    folder: Path
    results: int
    """Results that came with their files."""
    needs: tuple[str, ...]
    """Files that its trials name and that are not here."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "folder": str(self.folder), "needs": list(self.needs)}

    def lines(self, out: Path | None) -> list[str]:
        """Return what a person is told; `out` is the run directory that the command line gave."""
        where = f" --out {shlex.quote(str(out))}" if out else ""
        other = f", as another sweep is called '{self.wanted}'" if self.name != self.wanted else ""
        lines = [f"sweep '{self.name}' is in {self.folder}{other}"]
        if self.needs:
            lines.append(f"not here, though its trials name them: {', '.join(self.needs)}")
        return [*lines, f"next: bdtune report {self.name}{where}, or bdtune verify {self.name}{where}"]


def import_sweep(source: Path, home: Path, store: str | None = None) -> Imported:
    """Take a sweep in, under its name or, where another sweep has it, with a number.

    Its results go to `store`, by default that of the run directory. Raises `UserError` where the folder is no
    whole export, its settings cannot be read here, or the sweep is here already; nothing is written then.
    """
    about = _contents(source)
    sweeps = home / SWEEPS
    _place(source, home)  # before anything is written
    at = checked(store_at(home, store))
    sweeps.mkdir(parents=True, exist_ok=True)
    with file_lock(sweeps / ".lock"):
        place = _place(source, home)
        temporary = beside(sweeps / place.name)
        try:
            shutil.copytree(source / SWEEP, temporary)
            if (source / MANIFESTS).is_dir():  # else nothing was computed of it yet
                shutil.copytree(source / MANIFESTS, temporary / MANIFESTS)
            if place.name != place.wanted:
                _rename(temporary, place.name)
            (temporary / "sweep.json").touch()  # later than the settings that it is of
            note_store(temporary, at, home)
            results = _adopt(source / STORE, to_write(home, at))
            temporary.rename(place.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    needs = tuple(need for need in about["needs"] if not Path(need).exists())
    return Imported(place.name, about["name"], place.folder, results, needs)


def _place(source: Path, home: Path) -> Place:
    """Return where the sweep belongs; raises `UserError` if it is there already."""
    spec = load_sweep(source / SWEEP / SETTINGS, check_data=False)
    place = find_place(home, spec, identity_of(source / SWEEP))
    if place.known:
        expected = f"expected a run directory without this sweep; it is '{place.name}' in {home}"
        raise UserError(Problem("", expected, hint="Import it elsewhere: --out FOLDER"))
    return place


def _contents(source: Path) -> dict[str, Any]:
    """Return what an export says of itself; raises `UserError` with each file that is not as it says."""
    try:
        about = json.loads((source / CONTENTS).read_text(encoding="utf-8"))
        sums, version = dict(about["files"]), about["format"]
        assert isinstance(about["needs"], list)
        assert isinstance(about["name"], str)
    except FileNotFoundError:
        expected = f"expected a folder that 'bdtune export SWEEP' wrote, with {CONTENTS}"
        raise UserError(Problem(str(source), expected, "none")) from None
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        got = f"{type(error).__name__}: {error}"
        raise UserError(Problem(str(source / CONTENTS), "expected an export's contents", got)) from None
    if version != FORMAT:
        hint = "Import it with the version of bdtune that wrote it, or export it again"
        expected = f"expected an export of format {FORMAT}"
        raise UserError(Problem(str(source), expected, str(version), hint=hint))
    problems = [problem for name, sha in sums.items() if (problem := _wrong(source, name, sha))]
    present = {str(file.relative_to(source)) for file in source.rglob("*") if file.is_file()}
    problems += [
        Problem(str(source / name), "expected a file that its contents name")
        for name in sorted(present - sums.keys() - {CONTENTS})
    ]
    if problems:
        raise UserError(problems)
    return dict(about)


def _wrong(source: Path, name: str, sha: str) -> Problem | None:
    parts = PurePosixPath(name).parts
    if PurePosixPath(name).is_absolute() or ".." in parts or parts[0] not in (SWEEP, MANIFESTS, STORE):
        return Problem(CONTENTS, "expected files inside the export", name)
    file = source / name
    if not file.is_file() or file.is_symlink():
        return Problem(str(file), "expected a file that the export was written with", "none")
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha:
        return Problem(str(file), "expected the content that was exported", "another SHA-256")
    return None


def _rename(folder: Path, name: str) -> None:
    """Give an imported sweep another name, wherever it stands."""
    for file in [folder / SETTINGS, *folder.glob(f"{ASKED}/*.yaml")]:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        replace_file(file, yaml.safe_dump({**settings, "name": name}, sort_keys=False).encode())
    result: Mapping[str, Any] = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    replace_file(folder / "sweep.json", json.dumps({**result, "sweep": name}).encode())


def _adopt(source: Path, store: Store) -> int:
    """Take the results in that came along; returns how many."""
    folders = sorted(source.glob("*"))
    for folder in folders:
        contents = {file.name: file.read_bytes() for file in folder.iterdir()}
        try:
            store.adopt(contents)
        except (ValueError, KeyError) as error:
            expected = "expected an entry of a store"
            raise UserError(Problem(str(folder), expected, str(error))) from None
    return len(folders)

"""A sweep's folder, `sweeps/<name>`: one for each identity, so that no sweep overwrites another.

    identity.json       what decides its results, see `bdtune.config.identity`
    asked/<key>.yaml    the settings of each run; their trials together are the sweep's
    sweep.yaml          those of the last run
    store.txt           where its results are, if that is not the run directory's own folder

A folder of an earlier version has `sweep.yaml` alone. A name that another sweep has gets a number: `gssd-2`.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bdtune.config.expand import points
from bdtune.config.identity import Difference, Identity, in_words
from bdtune.config.load import load_sweep
from bdtune.config.sweep import SweepSpec, sweep_to_dict
from bdtune.engine.files import file_lock, replace_file
from bdtune.engine.key import key_of
from bdtune.engine.objects import is_address
from bdtune.errors import Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.config.trial import TrialSpec

SWEEPS = "sweeps"
SETTINGS = "sweep.yaml"
IDENTITY = "identity.json"
ASKED = "asked"
STORE = "store.txt"
LONGEST = 95
"""Characters of a name that gets a number: the whole is a name too."""


@dataclass(frozen=True)
class Place:
    """Where a sweep belongs."""

    folder: Path
    known: bool
    """Whether an earlier run of this very sweep is there."""
    wanted: str
    """The name that was asked for."""
    rival: tuple[Difference, ...] = ()
    """How the sweep that has this name differs; nothing if it is free or this sweep's own."""

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.folder.name

    def line(self) -> str:
        """Return one line for a person if the sweep is not called what was asked for, else nothing."""
        if self.name == self.wanted:
            return ""
        why = f"'{self.wanted}' was run with other settings ({in_words(self.rival)}): " if self.rival else ""
        return f"{why}this is sweep '{self.name}'"


class NameTakenError(UserError):
    """A name that the user gave belongs to another sweep."""

    def __init__(self, place: Place) -> None:
        self.place = place
        expected = "expected a name that is free, or that sweep's own settings"
        got = f"'{place.wanted}', which was run with {in_words(place.rival)}"
        super().__init__(Problem("name", expected, got, hint=f"Give another, such as name={place.name}"))


def find_place(run_dir: Path, spec: SweepSpec, own: Identity | None = None) -> Place:
    """Return where a sweep belongs: its own folder, else one that is free; writes nothing.

    `own` is the sweep's identity, where its settings alone do not say what it was run as.
    """
    own = own or Identity.of(spec)
    rival: tuple[Difference, ...] = ()
    for folder in _folders(run_dir / SWEEPS, spec.name):
        differences = tuple(_differences(folder, own))
        if not differences:
            return Place(folder, True, spec.name, rival)
        rival = differences if folder.name == spec.name else rival
    return Place(_free(run_dir / SWEEPS, spec.name), False, spec.name, rival)


def own_store(run_dir: Path) -> Path:
    """Return the store that a run directory has in itself."""
    return run_dir / "store"


def store_of(folder: Path) -> Path | str:
    """Return where the results of a sweep are that was begun: a folder, or an address."""
    if not (folder / STORE).is_file():
        return own_store(folder.parent.parent)
    noted = (folder / STORE).read_text(encoding="utf-8").strip()
    return noted if is_address(noted) else Path(noted)


def note_store(folder: Path, at: Path | str, run_dir: Path) -> None:
    """Note in a folder where its results are: of a sweep, of a campaign, or of the whole run directory."""
    if at == own_store(run_dir):
        (folder / STORE).unlink(missing_ok=True)
    else:
        replace_file(folder / STORE, f"{at}\n".encode())


def elsewhere(folder: Path, at: Path | str) -> Problem | None:
    """Return what is wrong if a sweep that was begun has its results elsewhere than `at`."""
    began = store_of(folder)
    if began == at:
        return None
    hint = f"Leave --store out. If the store itself was moved, write its new place into {folder / STORE}"
    return Problem("--store", f"expected {began}, where '{folder.name}' began", str(at), hint=hint)


def claim(run_dir: Path, spec: SweepSpec, at: Path | str | None = None, *, numbered: bool = True) -> Place:
    """Take a sweep's folder, and note the settings of this run; one process at a time.

    `at` is where its results are to be, by default in the run directory itself. Raises `NameTakenError` if
    another sweep has the name, unless this one may be `numbered`, and `UserError` if that is elsewhere.
    """
    at = own_store(run_dir) if at is None else at
    _permit(find_place(run_dir, spec), numbered=numbered)
    (run_dir / SWEEPS).mkdir(parents=True, exist_ok=True)
    with file_lock(run_dir / SWEEPS / ".lock"):
        place = find_place(run_dir, spec)
        _permit(place, numbered=numbered)
        if place.known and (problem := elsewhere(place.folder, at)):
            raise UserError(problem)
        note_store(place.folder, at, run_dir)
        _note(place.folder, spec.model_copy(update={"name": place.name}))
    return place


def release(place: Place) -> None:
    """Give back a folder that was claimed for a sweep which could not start: its name is free again."""
    if not place.known:
        with file_lock(place.folder.parent / ".lock"):
            shutil.rmtree(place.folder, ignore_errors=True)


def varied(folder: Path, spec: SweepSpec) -> list[str]:
    """Return the dotted paths that a sweep varies: this run's, then those of earlier runs."""
    identity = identity_of(folder)
    return list(dict.fromkeys([*spec.axis_paths(), *(identity.axes if identity else ())]))


def asked_trials(folder: Path) -> tuple[list[TrialSpec], list[str]]:
    """Return the trials of all runs of a finite sweep; and why settings of some cannot be read any more."""
    trials, unreadable = [], []
    for file in _asked(folder):
        try:
            spec = load_sweep(file, check_data=False)
            trials += points(spec)
        except UserError as error:
            unreadable.append(f"{file}: {error.problems[0]}")
    return trials, unreadable


def _permit(place: Place, *, numbered: bool) -> None:
    if place.rival and not place.known and not numbered:
        raise NameTakenError(place)


def _folders(sweeps: Path, name: str) -> Iterator[Path]:
    """Yield the folders of that name, with and without a number, which are some sweep's."""
    pattern = re.compile(rf"{re.escape(name[:LONGEST])}-([1-9]\d*)")
    found = {int(match[1]): each for each in sweeps.glob("*") if (match := pattern.fullmatch(each.name))}
    yield from (each for each in (sweeps / name, *(found[n] for n in sorted(found))) if not _vacant(each))


def _free(sweeps: Path, name: str) -> Path:
    number, folder = 1, sweeps / name
    while not _vacant(folder):
        number += 1
        folder = sweeps / f"{name[:LONGEST]}-{number}"
    return folder


def _vacant(folder: Path) -> bool:
    return all(file.name == STORE for file in folder.glob("[!.]*"))  # which is written first


def _differences(folder: Path, own: Identity) -> list[Difference]:
    identity = identity_of(folder)
    if identity is None:
        return [Difference("settings", "unreadable", "known")]
    return identity.differences(own)


def identity_of(folder: Path) -> Identity | None:
    """Return the identity of the sweep that a folder belongs to; None if it cannot be known."""
    with suppress(FileNotFoundError, ValueError, TypeError):
        return Identity(**json.loads((folder / IDENTITY).read_text(encoding="utf-8")))
    with suppress(UserError, OSError):
        return Identity.of(load_sweep(folder / SETTINGS, check_data=False))
    return None


def _note(folder: Path, spec: SweepSpec) -> None:
    """Write down a run's settings, those of an earlier version's run first."""
    if not _asked(folder, only_noted=True) and (folder / SETTINGS).exists():
        before = (folder / SETTINGS).read_bytes()
        replace_file(folder / ASKED / f"{key_of(yaml.safe_load(before))}.yaml", before)
    earlier, own = identity_of(folder), Identity.of(spec)
    identity = earlier.extended(own) if earlier else own
    replace_file(folder / IDENTITY, json.dumps(asdict(identity), indent=1).encode())
    settings = sweep_to_dict(spec)
    content = yaml.safe_dump(settings, sort_keys=False).encode()
    replace_file(folder / ASKED / f"{key_of(settings)}.yaml", content)
    replace_file(folder / SETTINGS, content)


def _asked(folder: Path, *, only_noted: bool = False) -> list[Path]:
    noted = sorted((folder / ASKED).glob("[!.]*.yaml"))
    return noted if noted or only_noted else [folder / SETTINGS]

"""Finding sweeps and trials in a run directory by what people call them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import yaml

from bdtune.config.load import load_sweep
from bdtune.config.trial import spec_from_dict
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from bdtune.errors import ConfigError, Problem, UserError, nearest
from bdtune.report import files
from bdtune.trials.known import KnownTrial
from bdtune.trials.ledger import Ledger
from bdtune.trials.sweep_folder import SETTINGS, SWEEPS, asked_trials, find_place, store_of
from bdtune.verbs.stores import store_at, store_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec
    from bdtune.config.trial import TrialSpec
    from bdtune.trials.results import TrialResult

SINGLE = "trials"
"""Folder of the settings of trials that `bdtune run` computed: `<id>.yaml`."""
SINGLE_SWEEP = "run"
"""What these trials are recorded under in manifests."""
LEAST = 4
"""Characters of an id that may stand for it."""


def sweeps_of(run_dir: Path) -> dict[str, Path]:
    """Return the folder of each sweep by its name."""
    return {file.parent.name: file.parent for file in sorted(run_dir.glob(f"{SWEEPS}/[!.]*/{SETTINGS}"))}


def find_sweep(name: str, run_dir: Path) -> Path:
    """Return the folder of the sweep of this name or YAML file; raises `UserError` with the nearest name."""
    known = sweeps_of(run_dir)
    if name not in known:
        with contextlib.suppress(ConfigError):
            spec = load_sweep(name, check_data=False)
            place = find_place(run_dir, spec)
            name = place.name if place.known else spec.name
    if name not in known:
        expected = f"expected a sweep that was run in {run_dir}: {', '.join(known) or 'there is none yet'}"
        raise UserError(Problem("", expected, f"'{name}'", hint=nearest(name, known)))
    return known[name]


def settings_of(folder: Path) -> SweepSpec:
    """Return what a sweep was last run with, wherever its data are; raises `UserError`."""
    return load_sweep(folder / SETTINGS, check_data=False)


def find_trial(word: str, run_dir: Path, store: str | None = None) -> KnownTrial:
    """Return the one trial whose id begins so; raises `UserError` where there is none, or several.

    `store` is where a trial of `bdtune run` has its results; of a sweep it is an error if it is another one.
    """
    found = {trial.result.id: trial for trial in _reported(run_dir, word)}
    found = found or {trial.result.id: trial for trial in _computed(run_dir, word, store)}
    if len(found) == 1 and len(word) >= LEAST:
        [trial] = found.values()
        if trial.sweep:
            store_for(run_dir, [run_dir / SWEEPS / trial.sweep], store)
        return trial
    begins = f"'{word}', which begins {len(found)} ids"
    expected = f"expected the id of a trial of {run_dir}, or its first {LEAST} or more digits"
    hint = f"{nearest(word, sweeps_of(run_dir))} 'bdtune report NAME --json' lists a sweep's trials".strip()
    raise UserError(Problem("trial", expected, begins if len(found) > 1 else f"'{word}'", hint=hint))


def _reported(run_dir: Path, word: str) -> Iterator[KnownTrial]:
    """Yield the reported trials whose id begins so; what finished since the report is read from the store."""
    for name, folder in sweeps_of(run_dir).items():
        found = [trial for trial in files.reported(folder) if trial.id.startswith(word)]
        if found:
            root = settings_of(folder).trial.data_root
            yield from (_now(KnownTrial(run_dir, trial, name, root)) for trial in found)


def _now(known: KnownTrial) -> KnownTrial:
    if known.result.status != "pending":
        return known
    with contextlib.suppress(UserError):  # its data set is not here, say
        now = _result(known.spec, known.store, known.sweep)
        return replace(known, result=replace(now, is_baseline=known.result.is_baseline))
    return known


def _computed(run_dir: Path, word: str, store: str | None) -> Iterator[KnownTrial]:
    """Yield the trials whose id begins so of sweeps without a report yet, and of `bdtune run`."""
    for name, folder in sweeps_of(run_dir).items():
        with contextlib.suppress(UserError):
            spec = settings_of(folder)
            if spec.search is None:
                ledger = Ledger(name, Resolver(Store(store_of(folder), create=False)), spec.device)
                ledger.extend(asked_trials(folder)[0])
                yield from _begun(ledger, run_dir, word)
    alone = (run_dir / SINGLE).glob("[!.]*.yaml")
    at = store_at(run_dir, store)
    for file in sorted(file for file in alone if file.name.startswith(word)):
        own = spec_from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))
        result = _result(own, Store(at, create=False), SINGLE_SWEEP)
        yield KnownTrial(run_dir, result, "", own.data_root, at)


def _begun(ledger: Ledger, run_dir: Path, word: str) -> Iterator[KnownTrial]:
    for entry in ledger.entries.values():
        if entry.id.startswith(word):
            yield KnownTrial(run_dir, ledger.result(entry), ledger.sweep, entry.spec.data_root)


def _result(spec: TrialSpec, store: Store, sweep: str) -> TrialResult:
    """Return a trial's result as the store has it now."""
    ledger = Ledger(sweep, Resolver(store))
    return ledger.result(ledger.add(spec))

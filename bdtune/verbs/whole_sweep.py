"""All trials that a sweep was ever asked for: those of this run, of the store, and of earlier reports."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from bdtune.errors import DataError
from bdtune.report import files
from bdtune.trials.sweep_folder import asked_trials

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec
    from bdtune.trials.ledger import Entry, Ledger
    from bdtune.trials.results import TrialResult

log = logging.getLogger(__name__)


def whole(
    folder: Path, spec: SweepSpec, ledger: Ledger, latest: Iterable[TrialResult] = ()
) -> list[TrialResult]:
    """Return the results of all trials of a sweep; enters them into the ledger if the sweep is finite.

    They come in the order in which its settings state them, baselines first. `latest` are
    results of this run. Of other trials the store has the word, then the last report, which alone knows what
    failed or was stopped.
    """
    told = {trial.id: trial for trial in files.reported(folder)} | {trial.id: trial for trial in latest}
    if spec.search is not None:  # its trials were drawn: only reports list them
        return list(told.values())
    now = {trial.id for trial in latest}
    asked, unreadable = asked_trials(folder)
    for problem in unreadable:
        log.warning("settings of an earlier run cannot be read, its trials are as last reported: %s", problem)
    try:
        place = {ledger.add(trial).id: number for number, trial in enumerate(asked)}
    except DataError as error:
        log.warning("the data set is not here, so trials are as last reported: %s", error.problems[0])
        return list(told.values())
    entries = sorted(ledger.entries.values(), key=lambda entry: place.get(entry.id, -1))  # baselines first
    found = [_result(entry, ledger, told.get(entry.id), final=entry.id in now) for entry in entries]
    others = [trial for trial in told.values() if trial.id not in ledger.entries]
    return found + (others if unreadable else [])


def _result(entry: Entry, ledger: Ledger, told: TrialResult | None, *, final: bool) -> TrialResult:
    """Return a trial's result: what was just computed, else what the store has, else what was reported."""
    result = told if told is not None and final else ledger.result(entry)
    if result.status == "pending" and told is not None:
        result = told
    return replace(result, is_baseline=entry.is_baseline)


def without_data(ledger: Ledger) -> dict[str, str]:
    """Return "no data" by the id of each trial whose data set is not at hand."""
    specs = {trial: entry.spec for trial, entry in ledger.entries.items()}
    places = {(spec.dataset, spec.data_root) for spec in specs.values()}
    missing = {place for place in places if place[0].check(place[1])}
    return {trial: "no data" for trial, spec in specs.items() if (spec.dataset, spec.data_root) in missing}

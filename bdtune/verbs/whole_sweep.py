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

    `latest` are results of this run. Of other trials the store has the word, then the last report, which
    alone knows what failed or was stopped.
    """
    told = {trial.id: trial for trial in files.reported(folder)} | {trial.id: trial for trial in latest}
    if spec.search is not None:  # its trials were drawn: only reports list them
        return list(told.values())
    now = {trial.id for trial in latest}
    asked, unreadable = asked_trials(folder)
    for problem in unreadable:
        log.warning("settings of an earlier run cannot be read, its trials are as last reported: %s", problem)
    try:
        ledger.extend(asked)
    except DataError as error:
        log.warning("the data set is not here, so trials are as last reported: %s", error.problems[0])
        return list(told.values())
    found = [
        _result(entry, ledger, told.get(entry.id), final=entry.id in now) for entry in ledger.entries.values()
    ]
    others = [trial for trial in told.values() if trial.id not in ledger.entries]
    return found + (others if unreadable else [])


def _result(entry: Entry, ledger: Ledger, told: TrialResult | None, *, final: bool) -> TrialResult:
    """Return a trial's result: what was just computed, else what the store has, else what was reported."""
    result = told if told is not None and final else ledger.result(entry)
    if result.status == "pending" and told is not None:
        result = told
    return replace(result, is_baseline=entry.is_baseline)

"""The trials of a search: an Optuna study, by ask and tell.

The study lives in a journal file of the sweep. Trials that a killed driver leaves running there are given
out again under their own numbers, so that a resumed search is no other than an undisturbed one.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from bdtune.config.expand import with_values
from bdtune.config.trial import trial_id
from bdtune.engine.files import file_lock
from bdtune.engine.key import key_of
from bdtune.errors import ConfigError
from bdtune.tuning.samplers import SAMPLERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bdtune.config.sweep import Domain, SweepSpec
    from bdtune.config.trial import TrialSpec

VALUES = "bdtune.values"
"""Attribute of an Optuna trial: its settings as JSON, the very ones that were run."""

log = logging.getLogger(__name__)


class StudySource:
    """An Optuna study over the search's space."""

    adaptive = True

    def __init__(self, spec: SweepSpec, folder: Path) -> None:
        assert spec.search is not None
        self.spec = spec
        self._study = open_study(spec, folder)
        self._space = {path: _distribution(domain) for path, domain in spec.search.space.items()}
        self._known = self._told_before()
        self._left = spec.search.trials - len(self._known)

    def ask(self) -> tuple[int, TrialSpec] | None:
        if self._known:  # the store answers those that ended, and the table wants them
            ticket, values = self._known.pop(0)
            spec = self._spec_of(ticket, values)
            return self.ask() if spec is None else (ticket, spec)
        while self._left > 0:
            self._left -= 1
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = _sampler(self.spec, number)
            trial = self._study.ask(self._space)
            trial.set_user_attr(VALUES, json.dumps(trial.params))
            spec = self._spec_of(trial.number, trial.params)
            if spec is not None:
                return trial.number, spec
        return None

    def tell(self, ticket: int, values: Sequence[float] | None) -> None:
        state = TrialState.FAIL if values is None else None
        self._study.tell(ticket, None if values is None else list(values), state=state, skip_if_finished=True)

    def _spec_of(self, ticket: int, values: Mapping[str, Any]) -> TrialSpec | None:
        """Return the trial of some values; settings that do not go together count as a failed trial."""
        try:
            return with_values(self.spec.trial, values)
        except ConfigError as error:
            log.warning("trial %d of the search is left out: %s", ticket, error)
            self.tell(ticket, None)
            return None

    def _told_before(self) -> list[tuple[int, Mapping[str, Any]]]:
        """Return what an earlier start proposed. What it left open is open still: its values are run again.

        A trial that was killed before all its values were written is closed and does not count.
        """
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            if VALUES in trial.user_attrs:
                found.append((trial.number, json.loads(trial.user_attrs[VALUES])))
            elif trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
        return found


def open_study(spec: SweepSpec, folder: Path) -> optuna.Study:
    """Return the study of a search, which lives in its folder; it is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "optuna.journal"
    lock = file_lock(file.with_name(f".{file.name}.lock"))  # unlike Optuna's own it dies with its holder
    with lock:
        mend(file)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(file), lock_obj=lock)),
        study_name=_study_name(spec),
        load_if_exists=True,
        directions=["maximize" if mode == "max" else "minimize" for _, mode in spec.objectives],
        sampler=_sampler(spec, 0),
    )


def mend(journal: Path) -> None:
    """Cut off a line that a killed driver was writing: Optuna would read nothing behind it."""
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(journal, whole)


def _study_name(spec: SweepSpec) -> str:
    """Return a name that changes with what makes results incomparable: base trial, space and objectives."""
    assert spec.search is not None
    space = {path: domain.identity() for path, domain in spec.search.space.items()}
    return f"{spec.name}-{key_of([trial_id(spec.trial), space, spec.objectives])}"


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.kind == "choice":
        return CategoricalDistribution(domain.values)
    low, high = domain.values
    if domain.kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "log_uniform")


def _sampler(spec: SweepSpec, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial, seeded by its number: a resumed study draws the same."""
    assert spec.search is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS.find(spec.search.sampler).build(spec.search.seed, number)

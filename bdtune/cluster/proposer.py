"""Where a sweep's trials come from: a finite list, or an Optuna study that is asked and told.

The study lives in a journal file of the sweep. A killed driver leaves trials marked as running there: they
are closed, and their settings asked again, so that a resumed search is no other than an undisturbed one.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from bdtune.config.expand import points, with_values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bdtune.config.sweep import Domain, SweepSpec
    from bdtune.config.trial import TrialSpec

VALUES = "bdtune.values"
"""Attribute of an Optuna trial: its settings as JSON, the very ones that were run."""


class Proposer(Protocol):
    """Asked for trials, told what became of them."""

    adaptive: bool
    """Whether what is proposed depends on what was told."""

    def ask(self) -> tuple[int, TrialSpec] | None:
        """Return a ticket and a trial, or None when there are no more."""

    def tell(self, ticket: int, values: Sequence[float] | None) -> None:
        """Say what a ticket's trial reached on each objective; None when it failed."""


class Listed:
    """The points of a finite sweep."""

    adaptive = False

    def __init__(self, spec: SweepSpec) -> None:
        self._points = iter(enumerate(points(spec)))

    def ask(self) -> tuple[int, TrialSpec] | None:
        return next(self._points, None)

    def tell(self, ticket: int, values: Sequence[float] | None) -> None:
        """A finite sweep learns nothing."""


class Searched:
    """An Optuna study over the search's space."""

    adaptive = True

    def __init__(self, spec: SweepSpec, folder: Path) -> None:
        assert spec.search is not None
        self.spec = spec
        folder.mkdir(parents=True, exist_ok=True)
        file = str(folder / "optuna.journal")
        storage = JournalStorage(JournalFileBackend(file, lock_obj=JournalFileOpenLock(file)))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            storage=storage,
            study_name=spec.name,
            load_if_exists=True,
            directions=["maximize" if mode == "max" else "minimize" for _, mode in spec.objectives],
            sampler=_sampler(spec, asked=0),
        )
        asked = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = _sampler(spec, asked)
        self._space = {path: _distribution(domain) for path, domain in spec.search.space.items()}
        self._again = self._close_left_running()
        self._left = spec.search.trials - asked + len(self._again)
        self._done = self._finished()

    def ask(self) -> tuple[int, TrialSpec] | None:
        if self._done:  # told before: the store answers them, and the table wants them
            ticket, values = self._done.pop(0)
            return ticket, with_values(self.spec.trial, values)
        if self._left <= 0:
            return None
        self._left -= 1
        if self._again:
            self._study.enqueue_trial(self._again.pop(0))
        trial = self._study.ask(self._space)
        trial.set_user_attr(VALUES, json.dumps(trial.params))
        return trial.number, with_values(self.spec.trial, trial.params)

    def tell(self, ticket: int, values: Sequence[float] | None) -> None:
        state = TrialState.FAIL if values is None else None
        self._study.tell(ticket, None if values is None else list(values), state=state, skip_if_finished=True)

    def _close_left_running(self) -> list[dict[str, Any]]:
        """Close what a killed driver left open and return those settings."""
        found = []
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                found.append(dict(trial.params))
        return found

    def _finished(self) -> list[tuple[int, Mapping[str, Any]]]:
        trials = self._study.get_trials(deepcopy=False)
        ended = (TrialState.COMPLETE, TrialState.FAIL)
        seen: dict[str, tuple[int, Mapping[str, Any]]] = {}
        again = {json.dumps(values, sort_keys=True) for values in self._again}
        for trial in trials:
            text = json.dumps(trial.params, sort_keys=True)
            if trial.state in ended and trial.params and text not in again:
                seen.setdefault(text, (trial.number, trial.params))
        return list(seen.values())


def make_proposer(spec: SweepSpec, folder: Path) -> Proposer:
    """Return what proposes a sweep's trials; an Optuna study lives in `folder`."""
    return Listed(spec) if spec.search is None else Searched(spec, folder)


def _distribution(domain: Domain) -> BaseDistribution:
    if domain.kind == "choice":
        return CategoricalDistribution(domain.values)
    low, high = domain.values
    if domain.kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "log_uniform")


def _sampler(spec: SweepSpec, asked: int) -> optuna.samplers.BaseSampler:
    """Return the sampler; a resumed one is seeded by how far the study came, so as not to repeat itself."""
    assert spec.search is not None
    seed = (spec.search.seed + 1_000_003 * asked) % 2**32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if spec.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if spec.search.sampler == "qmc":
            return optuna.samplers.QMCSampler(seed=spec.search.seed, scramble=True)
        if spec.search.sampler == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed)
        if spec.search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed)

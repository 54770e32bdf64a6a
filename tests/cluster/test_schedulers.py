"""What Tune's HyperBand makes of trials that are ahead of their bracket, or leave it early."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass, field

import pytest
from ray.tune.experiment import Trial

from bdtune.cluster.sweep import _unpickled
from bdtune.tuning.schedulers import SCHEDULERS, Reduction


@dataclass(eq=False)
class Fake:
    """As much of a trial as a scheduler reads."""

    name: str
    status: str = Trial.RUNNING
    is_saving: bool = False
    config: dict = field(default_factory=dict)


class Band:
    """A HyperBand of nine epochs, and the trials in it; stands for Tune's controller too."""

    def __init__(self, trials: int):
        self.paused: list[str] = []
        self.scheduler = SCHEDULERS.find("hyperband").build(Reduction(), 9, self.paused.append)
        self.scheduler.set_search_properties("objective", "max")
        self.trials = [Fake(f"t{i}", config={"trial": f"t{i}"}) for i in range(trials)]
        for trial in self.trials:
            self.scheduler.on_trial_add(self, trial)

    def stop_trial(self, trial):
        trial.status = Trial.TERMINATED
        self.scheduler.on_trial_remove(self, trial)

    def reports(self, number: int, epoch: int, objective: float) -> str:
        trial = self.trials[number]
        trial.status = Trial.RUNNING
        result = {"epoch": epoch, "objective": objective}
        action = self.scheduler.on_trial_result(self, trial, result)
        trial.status = {"PAUSE": Trial.PAUSED, "STOP": Trial.TERMINATED}.get(action, Trial.RUNNING)
        if action == "STOP":
            self.scheduler.on_trial_remove(self, trial)
        return action

    def next(self) -> Fake | None:
        return self.scheduler.choose_trial_to_run(self)


BEFORE = 3 + 5
"""Trials that fill the brackets before the one that is judged after 1, 3 and 9 epochs."""


@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 8])
def test_a_trial_that_starts_ahead_of_its_bracket_is_not_paused_for_ever(epoch):
    band = Band(BEFORE + 1)
    assert band.reports(BEFORE, epoch, 0.5) == "CONTINUE"
    assert not band.paused


def test_all_ahead_the_best_go_on_and_the_others_stop():
    band = Band(BEFORE + 3)
    best, worst, _ = band.trials[BEFORE:]
    assert band.reports(BEFORE, 4, 0.9) == "PAUSE"
    assert band.reports(BEFORE + 1, 4, 0.1) == "PAUSE"
    assert band.reports(BEFORE + 2, 5, 0.5) == "STOP"
    assert band.paused == [best.name, worst.name]
    assert [best.status, worst.status] == [Trial.PAUSED, Trial.TERMINATED]
    assert band.next() is best


def test_who_waits_for_a_trial_that_fails_goes_on_without_it():
    band = Band(BEFORE + 9)
    for number in range(9):
        band.reports(BEFORE + number, 1, number / 10)
    third, second, best = band.trials[-3:]
    assert [trial for trial in band.trials[BEFORE:] if trial.status != Trial.TERMINATED] == [
        third,
        second,
        best,
    ]
    assert band.reports(BEFORE + 6, 3, 0.6) == "PAUSE"
    assert band.reports(BEFORE + 7, 3, 0.7) == "PAUSE"
    best.status = Trial.ERROR
    band.scheduler.on_trial_error(band, best)
    assert third.status == Trial.TERMINATED
    assert band.next() is second


def test_a_snapshot_leaves_the_driver_out():
    scheduler = Band(1).scheduler
    scheduler.driver = threading.Lock()  # as a driver, nothing that could be pickled
    assert type(pickle.loads(pickle.dumps(_unpickled(scheduler)))) is object

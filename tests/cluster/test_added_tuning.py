"""A sampler and a scheduler that are one file each, outside the package."""

from __future__ import annotations

import os

import pytest

from bdtune.config.sweep import sweep_to_dict
from bdtune.errors import ConfigError
from tests.cluster.sweeping import defended

SAMPLER = """
from optuna.samplers import RandomSampler

from bdtune.tuning.samplers import Sampler

MINE = Sampler("mine", "draws of mine", lambda seed, number: RandomSampler(seed=number), objectives=1)
"""
SCHEDULER = """
from pydantic import Field
from ray.tune.schedulers import FIFOScheduler

from bdtune.tuning.schedulers import Scheduler, SchedulerKnobs


class Knobs(SchedulerKnobs):
    last: int = Field(1, ge=1)


class Strict(FIFOScheduler):
    def __init__(self, last):
        super().__init__()
        self.last = last

    def on_trial_result(self, tune_controller, trial, result):
        over = result["epoch"] >= self.last and result["objective"] < 0.3
        return self.STOP if over else self.CONTINUE


STRICT = Scheduler("strict", "stops all but the best", lambda knobs, *_: Strict(knobs.last), Knobs)
"""
SEARCH = """
search:
  sampler: mine
  trials: 4
  space: {defense.tail.quality: {choice: [0.2, 0.4, 1.0]}}
scheduler: {name: strict, last: 2}
"""


@pytest.fixture
def added(bench, tmp_path, monkeypatch):
    for kind, name, text in (("samplers", "mine", SAMPLER), ("schedulers", "strict", SCHEDULER)):
        (tmp_path / "mine" / kind).mkdir(parents=True)
        (tmp_path / "mine" / kind / f"{name}.py").write_text(text)
    monkeypatch.setenv("BDTUNE_PLUGINS", f"{os.environ['BDTUNE_PLUGINS']}:{tmp_path / 'mine'}")
    return bench


def test_they_are_read_with_their_own_knobs(added):
    spec = added.spec(extra=SEARCH)
    assert (spec.search.sampler, spec.scheduler.name, spec.scheduler.last) == ("mine", "strict", 2)
    assert sweep_to_dict(spec)["scheduler"] == {"name": "strict", "last": 2}


@pytest.mark.parametrize(
    ("old", "new", "path", "hint"),
    [
        ("last: 2", "last: 0", "scheduler.last", "at least 1"),
        ("last: 2", "lst: 2", "scheduler.lst", "last"),
        ("name: strict, last: 2", "name: median, reduction: 2", "scheduler.reduction", "grace"),
        ("strict", "strct", "scheduler.name", "strict"),
        ("sampler: mine", "sampler: mime", "search.sampler", "mine"),
        ("trials: 4", "trials: 4\n  metric: [oracle_acc, oracle_asr]", "search.sampler", "takes 1"),
    ],
)
def test_what_is_wrong_with_them_is_said(added, old, new, path, hint):
    with pytest.raises(ConfigError) as caught:
        added.spec(extra=SEARCH.replace(old, new))
    problem = next(problem for problem in caught.value.problems if problem.path == path)
    assert hint in str(problem)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_they_run_a_sweep(added):
    trials = defended(added.run("defense.tail.epochs=4", extra=SEARCH))
    ended = {(trial.params["defense.tail.quality"] == 1.0, trial.status) for trial in trials}
    assert ended == {(True, "done"), (False, "stopped")}

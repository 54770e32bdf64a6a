from __future__ import annotations

import numpy as np
import pytest

from bdtune.cluster import deaths
from bdtune.engine.store import Store
from bdtune.errors import UserError
from tests.cluster.sweeping import defended

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and files of Ray's own
]


def test_what_is_shared_is_computed_once_and_a_rerun_starts_nothing(bench):
    grid = ("defense.prefix.level=0,1", "defense.beta=0.3,0.45,0.5", "defense.tail.epochs=2")
    outcome = bench.run(*grid)
    assert {trial.status for trial in outcome.trials} == {"done"}
    assert len(defended(outcome)) == 6
    assert all(trial.metrics["acc"] == 1.0 for trial in defended(outcome))
    assert bench.published() == {
        "all_samples": 1,
        "supervised": 1,
        "toy_prefix": 2,
        "toy_threshold": 6,
        "toy_tail": 4,  # 0.45 and 0.5 keep the same samples
        "diagnose": 6,
        "evaluate": 5,
    }
    assert not bench.twice()
    plan = bench.plan(*grid)
    assert {name: count.unique for name, count in plan.stages.items()} == bench.published()
    assert all(count.cached == count.unique for count in plan.stages.values())
    computed = sum(use.computed for trial in outcome.trials for use in trial.stages.values())
    assert computed == bench.published().total()

    again = bench.run(*grid)
    assert again.released == 0
    assert [trial.metrics for trial in again.trials] == [trial.metrics for trial in outcome.trials]
    assert not bench.twice()


def by(outcome, name: str) -> dict:
    """Return the defended trials by one parameter."""
    return {trial.params[name]: trial for trial in defended(outcome)}


def test_trials_that_fail_do_so_alone_and_are_tried_again_only_when_asked(bench):
    trouble = "defense.tail.trouble"
    outcome = bench.run(f"{trouble}=none,raise,diverge,kill_once")
    trials = by(outcome, trouble)
    assert {name: trial.status for name, trial in trials.items()} == {
        "none": "done",
        "raise": "failed",
        "diverge": "diverged",
        "kill_once": "done",
    }
    for name, told in {"raise": "told to fail", "diverge": "nan in epoch 1"}.items():
        assert "toy_tail" in trials[name].error
        assert told in trials[name].error
    tails = [note["identity"][0]["trouble"] for note in bench.notes("toy_tail")]
    assert sorted(tails) == ["diverge", "kill_once", "kill_once", "none", "raise"]
    leases = Store(bench.store.root).leases
    assert not any(leases.held_by_other(file.name) for file in leases.folder.iterdir())

    again = bench.run(f"{trouble}=none,raise,diverge,kill_once")
    assert again.released == 0
    assert {t.id: (t.status, t.error) for t in again.trials} == {
        t.id: (t.status, t.error) for t in outcome.trials
    }
    retried = bench.run(f"{trouble}=none,raise", retry_failed=True)
    assert retried.released == 1
    assert by(retried, trouble)["raise"].status == "failed"


def test_the_last_trial_is_tried_again_though_tune_was_told_that_no_more_come(bench):
    outcome = bench.run("defense.tail.trouble=kill_once", "retries=0")
    assert len(bench.notes("toy_tail")) == 2
    assert (outcome.interrupted, outcome.given_up) == (False, None)
    assert {trial.status for trial in outcome.trials} == {"done"}


def test_a_stage_that_goes_on_killing_its_process_is_given_up_with_its_followers(bench, monkeypatch):
    monkeypatch.setattr(deaths, "PAUSES_S", (0.0, 0.5))
    settings = ("defense.prefix.trouble=kill", "defense.tail.quality=0.25,0.5,0.75,1.0", "retries=0")
    outcome = bench.run(*settings)
    assert len(bench.notes("toy_prefix")) == 3
    assert not defended(outcome), "nothing is known of them"
    assert "the processes of 4 trials (" in outcome.given_up
    assert ") died again and again" in outcome.given_up
    assert not list((bench.store.root / "failed").iterdir())
    bench.run("defense.tail.quality=0.25")
    assert not list((bench.store.root / "leases").glob("[!.]*")), "the next start clears what the dead held"


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        (("resources.cpu=64",), "64 CPUs"),
        (("resources.gpu=1",), "1 GPUs"),
        (("resources.cpu=2", "pipeline=stream"), "more CPUs"),
    ],
)
def test_a_trial_that_fits_nowhere_is_an_error_at_once(bench, settings, missing):
    with pytest.raises(UserError, match="resources") as error:
        bench.run(*settings)
    assert missing in str(error.value)
    assert not bench.notes()


def test_the_longest_training_publishes_the_shorter_ones_on_its_way(bench):
    lengths = ("defense.prefix.epochs=1,4,3", "defense.prefix.passes=true", "defense.prefix.seconds=0.2")
    assert bench.plan(*lengths).stages["toy_prefix"].reused == 2
    outcome = bench.run(*lengths)
    assert {trial.status for trial in outcome.trials} == {"done"}
    assert [note["identity"][0]["epochs"] for note in bench.notes("toy_prefix")] == [4]
    assert bench.published()["toy_prefix"] == 3
    paid = {trial.params["defense.prefix.epochs"]: trial.stages["prefix"] for trial in defended(outcome)}
    assert [paid[length].computed for length in (1, 3, 4)] == [False, False, True]
    assert paid[1].seconds < paid[3].seconds < paid[4].seconds


def test_images_can_be_streamed_inside_trials(bench):
    resident = bench.run("defense.tail.quality=0.5,1.0", "attack=badnets")
    streamed = bench.run("defense.tail.quality=0.5,1.0", "attack=badnets", "pipeline=stream")
    for name in ("acc", "asr", "ra"):
        assert [t.metrics[name] for t in defended(streamed)] == [t.metrics[name] for t in defended(resident)]


QUALITIES = "defense.tail.quality=1.0,0.75,0.5,0.25,0.2,0.15"


@pytest.mark.parametrize("scheduler", ["asha", "median", "hyperband"])
def test_a_scheduler_stops_bad_trials_and_they_stay_stopped(bench, scheduler):
    settings = (QUALITIES, "defense.tail.epochs=9", "defense.tail.seconds=0.05", f"scheduler={scheduler}")
    outcome = bench.run(*settings)
    trials = by(outcome, "defense.tail.quality")
    statuses = {quality: trial.status for quality, trial in trials.items()}
    assert statuses[1.0] == "done"
    assert trials[1.0].metrics["acc"] == 1.0
    stopped = [trial for trial in trials.values() if trial.status == "stopped"]
    assert stopped, [(trial.status, trial.error) for trial in trials.values()]
    assert all("acc" in trial.metrics for trial in stopped)
    ended = {note["identity"][0]["quality"] for note in bench.notes("toy_tail", "end")}
    assert ended == {quality for quality, status in statuses.items() if status == "done"}
    begun = set()
    for note in bench.notes("toy_tail"):  # those that were paused go on from their checkpoint
        assert (note["done"] > 0) == (str(note["identity"]) in begun)
        begun.add(str(note["identity"]))

    again = bench.run(*settings)
    assert again.released == 0
    assert {t.id: (t.status, t.metrics) for t in again.trials} == {
        t.id: (t.status, t.metrics) for t in outcome.trials
    }


def test_what_was_stopped_goes_on_from_its_checkpoint_once_it_is_judged_otherwise(bench):
    settings = (QUALITIES, "defense.tail.epochs=9", "defense.tail.seconds=0.05")
    stopped = [t for t in bench.run(*settings, "scheduler=asha").trials if t.status == "stopped"]
    assert stopped
    before = len(bench.notes("toy_tail"))
    outcome = bench.run(*settings, "scheduler=none")
    assert {trial.status for trial in outcome.trials} == {"done"}
    promoted = bench.notes("toy_tail")[before:]
    assert len(promoted) == len(stopped) == outcome.released
    assert all(0 < note["done"] < 9 for note in promoted)
    assert len(bench.notes("toy_tail", "end")) == 6


@pytest.mark.parametrize("scheduler", ["asha", "median", "hyperband"])
def test_settings_that_share_a_judged_training_do_not_wait_for_one_another_for_ever(bench, scheduler):
    settings = ("defense.beta=0.45,0.5", QUALITIES, "defense.tail.epochs=9", f"scheduler={scheduler}")
    outcome = bench.run(*settings, "defense.tail.seconds=0.02")
    assert len(defended(outcome)) == 12
    assert {trial.status for trial in outcome.trials} <= {"done", "stopped"}
    best = [trial for trial in defended(outcome) if trial.params["defense.tail.quality"] == 1.0]
    assert {trial.status for trial in best} == {"done"}
    assert len(bench.notes("toy_tail", "end")) <= 6


@pytest.mark.parametrize(
    ("sampler", "objectives"),
    [("tpe", "metric: oracle_acc"), ("nsga2", "metric: [oracle_acc, oracle_asr]")],
)
def test_a_search_runs_its_trials_and_nothing_when_it_is_over(bench, sampler, objectives):
    extra = f"""
search:
  sampler: {sampler}
  trials: 5
  {objectives}
  space:
    defense.tail.quality: {{uniform: [0.0, 1.0]}}
    defense.prefix.level: {{choice: [0, 1]}}
"""
    outcome = bench.run("attack=badnets", extra=extra)
    assert len(defended(outcome)) == 5
    assert {trial.status for trial in outcome.trials} == {"done"}
    again = bench.run("attack=badnets", extra=extra)
    assert again.released == 0
    assert {t.id: t.metrics for t in again.trials} == {t.id: t.metrics for t in outcome.trials}
    assert not bench.twice()


def test_a_search_over_epochs_with_a_scheduler(bench):
    extra = """
search:
  sampler: random
  trials: 4
  space: {defense.tail.epochs: {int: [2, 6]}, defense.tail.quality: {uniform: [0.0, 1.0]}}
scheduler: asha
"""
    outcome = bench.run(extra=extra)
    assert {trial.status for trial in outcome.trials} <= {"done", "stopped"}
    assert len(defended(outcome)) == 4


def test_files_of_an_attack_are_found_by_workers_in_other_folders(bench, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.save(tmp_path / "mine.npy", pixels)
    monkeypatch.chdir(tmp_path)
    words = ("attack=blend", "attack.rate=0.2", "attack.pattern_path=mine.npy", "defense.tail.epochs=1")
    outcome = bench.run(*words)
    assert {trial.status for trial in outcome.trials} == {"done"}
    monkeypatch.chdir("/")
    other = (*words[:2], f"attack.pattern_path={tmp_path / 'mine.npy'}", words[3])
    assert [trial.id for trial in bench.run(*other).trials] == [trial.id for trial in outcome.trials]
    assert not bench.twice()

from __future__ import annotations

import json
import signal
import time

import pytest

from tests.end_to_end.chaos import Chaos, workers
from tests.end_to_end.kills import LONGEST_S, Runs, by_setting, digests, metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing happens to, and its result."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed") / "a")
    return runs, runs.finish()


def is_whole(runs, result, undisturbed) -> None:
    """Check that a disturbed sweep ended as the undisturbed one, and paid for nothing twice."""
    assert not runs.differences(result, *undisturbed)


def test_the_undisturbed_sweep_shares_and_its_rerun_is_free(undisturbed):
    runs, result = undisturbed
    is_whole(runs, result, undisturbed)
    stages = [manifest.name for manifest in runs.store.entries()]
    assert stages.count("toy_prefix") == 2
    assert stages.count("toy_tail") == 4  # two verdicts of each prefix
    before = (runs.folder / "runs" / "mlflow.db").stat().st_mtime
    started, costs = runs.notes(), (runs.store.root / "costs.jsonl").read_text()
    again = runs.finish()
    assert metrics(again) == metrics(result)
    assert runs.notes() == started
    assert (runs.store.root / "costs.jsonl").read_text() == costs
    assert (runs.folder / "runs" / "mlflow.db").stat().st_mtime == before, "nothing new for MLflow"


def test_a_sweep_that_is_killed_in_all_ways_ends_as_if_nothing_had_happened(tmp_path, undisturbed):
    runs = Runs(tmp_path / "killed", slower=3.0)
    chaos = Chaos(["SIGKILL driver", "SIGKILL raylet", "Ctrl-C twice", "SIGSTOP worker"], seed=1, span_s=3.0)
    result = chaos.disturb(runs, "small")
    assert len(chaos.blows) == 4
    assert not chaos.unexplained
    assert by_setting(result) == by_setting(undisturbed[1])
    assert not runs.leftovers()
    assert not chaos.processes_left(wait_s=60)


def test_a_sweep_without_rays_daemon_says_so_and_ends_at_once(tmp_path, undisturbed):
    # long enough that the sweep is not over before its driver looks for Ray's processes
    runs = Runs(tmp_path / "gcs", slower=4.0)
    chaos = Chaos(["SIGKILL GCS"], seed=2, span_s=1.0, early=0.0)
    result = chaos.disturb(runs, "small")
    errors = (runs.folder / "stderr.txt").read_text()
    assert "error: Ray's process gcs_server was killed" in errors
    assert "The same command goes on from here" in errors
    assert chaos.blows[0].ended == 1
    assert chaos.blows[0].ended_s < 60, "Ray itself waits a minute"
    assert not [word for word in ("Traceback", "core_worker") if word in errors]
    assert not chaos.unexplained
    assert by_setting(result) == by_setting(undisturbed[1])
    assert sorted(digests(runs).values()) == sorted(digests(undisturbed[0]).values())
    assert not runs.computed_after_publishing()
    assert not runs.published_twice()
    statuses, runs_of = runs.mlflow_runs()
    assert statuses == {"FINISHED": len(result["trials"]) + 1}
    assert runs_of == dict.fromkeys(metrics(result), 1)
    assert not runs.leftovers()


def test_two_drivers_on_one_store_share_the_work(tmp_path, undisturbed):
    runs = Runs(tmp_path / "two")
    first, second = runs.start(), runs.start()
    results = [json.loads(process.communicate(timeout=240)[0]) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert metrics(results[0]) == metrics(results[1])
    is_whole(runs, results[0], undisturbed)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_an_interrupt_ends_a_sweep_and_the_same_command_goes_on(tmp_path, undisturbed, sent):
    runs = Runs(tmp_path / "interrupted")
    process = runs.start()
    runs.wait_for("toy_tail", 2)
    process.send_signal(sent)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert {trial["status"] for trial in json.loads(out)["trials"]} <= {"done", "pending"}
    errors = (runs.folder / "stderr.txt").read_text()
    assert "the same command goes on" in errors
    assert not [word for word in ("received", "logging.cc", "Traceback", "ray.") if word in errors]
    is_whole(runs, runs.finish(), undisturbed)


def test_workers_that_are_killed_are_nobodys_failure_and_json_stays_alone_on_stdout(tmp_path, undisturbed):
    runs = Runs(tmp_path / "workers", slower=4.0)
    process = runs.start()
    killed = 0
    while killed < 4 and process.poll() is None:
        begun = len(runs.notes())
        while process.poll() is None and len(runs.notes()) == begun:
            time.sleep(0.05)
        for worker in workers(process.pid)[:1]:
            worker.kill()
            killed += 1
    out, _ = process.communicate(timeout=LONGEST_S)
    assert killed == 4
    assert process.returncode == 0, (runs.folder / "stderr.txt").read_text()[-3000:]
    assert by_setting(json.loads(out)) == by_setting(undisturbed[1])
    assert not list((runs.store.root / "failed").iterdir())
    assert not list((runs.store.root / "leases").iterdir())
    assert not list((runs.store.root / "pins").iterdir())
    assert not list((runs.folder / "runs" / "sweeps" / "small" / "tune").iterdir())


def test_fractions_of_gpus_that_are_not_there_are_scheduled_like_real_ones(tmp_path, undisturbed):
    # long enough that a second process starts beside the first on a busy machine, too
    runs = Runs(tmp_path / "gpus", slower=6.0)
    result = runs.finish("resources.gpu=0.5", "resources.cpu=0.5", "--gpus=2")
    assert by_setting(result) == by_setting(undisturbed[1])
    assert {note["gpus"] for note in runs.notes("toy_tail")} == {"0", "1"}

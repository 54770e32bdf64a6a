from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from bdtune.tracking import deliver, mlflow_log
from bdtune.tracking.commands import sync
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.store import TrackingStore
from bdtune.trials.results import SweepResult

AXES = ["defense.beta_nd", "seed"]
DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(mlflow_log, "GATHER_S", 0.0)
    monkeypatch.setattr(mlflow_log, "HEAD_START_S", 0.0)
    # without the process between, see test_courier.py: some of these tests put themselves in MLflow's place
    monkeypatch.setattr(mlflow_log.courier, "deliver", lambda delivery: delivery.round())


def tracked(run_dir, trials, status="done", end=True, **options):
    """Run a whole sweep's tracking and return what waits."""
    tracker = Tracker(run_dir, "small", axes=AXES, **options)
    tracker.start()
    for trial in trials:
        tracker.finished(trial)
    if end:
        tracker.end(SweepResult("small", tuple(trials), best=trials[0].id), status, note="| a |")
    return tracker.close()


def client(run_dir):
    return deliver.connect(TrackingStore.of(run_dir))


def runs(run_dir):
    mlflow = client(run_dir)
    experiment = mlflow.get_experiment_by_name("small")
    found = mlflow.search_runs([experiment.experiment_id]) if experiment else []
    parents = [run for run in found if run.data.tags["bdtune.role"] == "sweep"]
    children = {run.data.tags["bdtune.trial"]: run for run in found if "bdtune.trial" in run.data.tags}
    assert len(parents) + len(children) == len(found)
    return parents, children


def snapshot(run_dir):
    """All that MLflow holds, without the ids it makes up."""
    mlflow = client(run_dir)
    parents, children = runs(run_dir)
    assert len(parents) == 1
    content = {}
    for name, run in {"": parents[0], **children}.items():
        tags = {k: v for k, v in run.data.tags.items() if k not in ("mlflow.parentRunId", "bdtune.sweep_id")}
        history = {
            key: sorted((m.step, m.value) for m in mlflow.get_metric_history(run.info.run_id, key))
            for key in run.data.metrics
            if key != "progress"  # its step is a time
        }
        content[name] = (run.info.status, run.info.run_name, run.data.params, tags, history)
    return content


def test_parent_children_and_their_content(run_dir, make_trial):
    space = run_dir / "space.yaml"
    space.write_text("name: small")
    trials = [make_trial(0, is_baseline=True), make_trial(1), make_trial(2, status="diverged", error="nan")]
    waiting = tracked(run_dir, trials, params={"select": "oracle_der"}, artifacts=[(space, "config")])
    assert (waiting.waiting, waiting.error) == (0, None)
    parents, children = runs(run_dir)
    [parent] = parents
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "small"
    assert parent.data.params == {"select": "oracle_der"}
    assert parent.data.tags["mlflow.note.content"] == "| a |"
    assert parent.data.metrics["trials/total"] == 3
    assert set(children) == {"trial000", "trial001", "trial002"}
    for run in children.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["bdtune.sweep"] == "small"
    child = children["trial001"]
    assert child.info.run_name == "beta_nd=1.5 seed=1"
    assert child.info.end_time - child.info.start_time == 30_500
    assert child.data.params["defense.beta_nd"] == "1.5"
    assert child.data.metrics["knob/defense.beta_nd"] == 1.5
    assert child.data.metrics["asr"] == 0.01
    assert child.data.tags["stage.simclr"].endswith("hit")
    assert children["trial002"].info.status == "FAILED"
    assert children["trial000"].info.run_name == "undefended seed=0"
    [used] = child.inputs.dataset_inputs
    assert used.dataset.name == "digits+badnets"
    assert len(used.dataset.digest) == 36
    mlflow = client(run_dir)
    assert [file.path for file in mlflow.list_artifacts(parent.info.run_id, "config")] == [
        "config/space.yaml"
    ]
    assert str(run_dir / "artifacts") in parent.info.artifact_uri
    loss = mlflow.get_metric_history(child.info.run_id, "supervised/loss")
    assert [(m.step, m.value) for m in loss] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_all_runs_of_the_best_setting_are_marked_and_others_lose_the_mark(run_dir, make_trial):
    params = {**make_trial(0).params, "defense.beta_nd": 1}
    best = [make_trial(n, params={**params, "seed": n}) for n in range(2)]
    other = make_trial(5)
    for chosen in (best[0], other, best[1]):
        tracker = Tracker(run_dir, "small", axes=AXES)
        tracker.start()
        for trial in (*best, other):
            tracker.finished(trial)
        tracker.end(SweepResult("small", (*best, other), best=chosen.id))
        assert tracker.close().waiting == 0
        marked = {
            name for name, run in runs(run_dir)[1].items() if run.data.tags.get("bdtune.best") == "best"
        }
        assert marked == ({other.id} if chosen is other else {trial.id for trial in best})
    [parent] = runs(run_dir)[0]
    assert parent.data.metrics["best/n"] == 2
    client(run_dir).delete_run(runs(run_dir)[1][best[0].id].info.run_id)
    tracker = Tracker(run_dir, "small", axes=AXES)
    tracker.end(SweepResult("small", (*best, other), best=other.id))
    assert tracker.close().error is None
    assert runs(run_dir)[1][other.id].data.tags["bdtune.best"] == "best"


def delivered(tracker):
    """Wait until the tracker has delivered all that it has."""
    end = time.monotonic() + 60
    while tracker.status().waiting and time.monotonic() < end:
        time.sleep(0.05)
    assert tracker.status().waiting == 0


def test_a_trial_appears_when_it_starts_and_its_curves_grow(run_dir, make_trial, monkeypatch):
    monkeypatch.setattr(mlflow_log, "LIVE_S", 0.0)
    tracker = Tracker(run_dir, "small", axes=AXES)
    tracker.start()
    tracker.began(make_trial(1, status="pending", metrics={}, curves={}))
    delivered(tracker)
    run = runs(run_dir)[1]["trial001"]
    assert (run.info.status, run.info.run_name) == ("RUNNING", "beta_nd=1.5 seed=1")
    assert run.data.tags["bdtune.status"] == "running"
    assert run.data.params["defense.beta_nd"] == "1.5"
    for epoch in (1, 2, 2):  # a note may be read twice
        tracker.learned("trial001", "supervised", epoch, {"loss": 1 / epoch, "lr": float("nan")})
        delivered(tracker)
    tracker.learned("unknown", "supervised", 1, {"loss": 1.0})
    [same] = runs(run_dir)[1].values()
    assert same.data.metrics == {"supervised/loss": 0.5}
    tracker.finished(make_trial(1))
    tracker.end(SweepResult("small", (make_trial(1),), "trial001"))
    assert tracker.close().waiting == 0
    [ended] = runs(run_dir)[1].values()
    assert (ended.info.run_id, ended.info.status) == (run.info.run_id, "FINISHED")
    assert ended.data.tags["bdtune.status"] == "done"
    history = client(run_dir).get_metric_history(run.info.run_id, "supervised/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


def test_the_parent_shows_progress(run_dir, make_trial, monkeypatch):
    monkeypatch.setattr(mlflow_log, "LIVE_S", 0.0)
    tracker = Tracker(run_dir, "small", axes=AXES)
    tracker._expected = 4
    tracker.start()
    for number in (1, 2):
        tracker.finished(make_trial(number))
        delivered(tracker)
    [parent] = runs(run_dir)[0]
    assert parent.info.status == "RUNNING"
    assert parent.data.tags["bdtune.progress"] == "2 of 4 trials"
    assert parent.data.metrics["progress"] == 0.5
    tracker.end(SweepResult("small", tuple(map(make_trial, range(1, 5))), "trial001"))
    assert tracker.close().waiting == 0
    [parent] = runs(run_dir)[0]
    assert (parent.info.status, parent.data.metrics["progress"]) == ("FINISHED", 1.0)
    assert parent.data.tags["bdtune.progress"] == "4 of 4 trials"


def test_an_interrupted_sweep_leaves_no_trial_running(run_dir, make_trial):
    tracker = Tracker(run_dir, "small", axes=AXES)
    tracker.start()
    tracker.finished(make_trial(1))
    tracker.began(make_trial(2, status="pending", metrics={}))
    tracker.end(SweepResult("small", (make_trial(1),), "trial001"), "interrupted")
    assert tracker.close().waiting == 0
    assert {name: run.info.status for name, run in runs(run_dir)[1].items()} == {
        "trial001": "FINISHED",
        "trial002": "KILLED",
    }
    tracked(run_dir, [make_trial(1), make_trial(2)])
    assert {run.info.status for run in runs(run_dir)[1].values()} == {"FINISHED"}


@pytest.mark.parametrize("closed_by", ["sync", "another start"])
def test_a_trial_that_a_killed_driver_left_running_is_closed(run_dir, make_trial, closed_by):
    killed = Tracker(run_dir, "small", axes=AXES)
    killed.start()
    killed.began(make_trial(2, status="pending", metrics={}))
    delivered(killed)
    killed.close()  # without an end
    assert [run.info.status for run in runs(run_dir)[1].values()] == ["RUNNING"]
    if closed_by == "sync":
        sync(run_dir)
    else:
        tracked(run_dir, [make_trial(1)])
    assert runs(run_dir)[1]["trial002"].info.status == "KILLED"


def test_a_rerun_adds_nothing_and_does_not_start_delivery(run_dir, make_trial, monkeypatch):
    trials = [make_trial(n) for n in range(3)]
    tracked(run_dir, trials)
    before = snapshot(run_dir)
    monkeypatch.setattr(deliver.Delivery, "round", lambda self, **_: pytest.fail("nothing is new"))
    hits = [replace(t, stages={k: replace(u, computed=False) for k, u in t.stages.items()}) for t in trials]
    assert tracked(run_dir, hits).waiting == 0
    monkeypatch.undo()
    assert snapshot(run_dir) == before


def test_a_resumed_sweep_adds_only_what_is_new(run_dir, make_trial):
    tracked(run_dir, [make_trial(0)], "interrupted")
    assert runs(run_dir)[0][0].info.status == "KILLED"
    tracked(run_dir, [make_trial(n) for n in range(3)])
    parents, children = runs(run_dir)
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert len(children) == 3


def test_a_failed_trial_that_is_repeated_keeps_its_run(run_dir, make_trial):
    tracked(run_dir, [make_trial(1, status="failed", error="out of memory", metrics={})])
    [before] = runs(run_dir)[1].values()
    tracked(run_dir, [make_trial(1)])
    [after] = runs(run_dir)[1].values()
    assert before.info.run_id == after.info.run_id
    assert (before.info.status, after.info.status) == ("FAILED", "FINISHED")
    assert "bdtune.error" not in after.data.tags
    assert after.data.metrics["acc"] == 0.99


def test_a_changed_parameter_does_not_break_delivery(run_dir, make_trial):
    tracked(run_dir, [make_trial(1)])
    changed = make_trial(1, params={**make_trial(1).params, "attack.rate": 0.2, "new.knob": 3})
    assert tracked(run_dir, [changed]).waiting == 0
    [run] = runs(run_dir)[1].values()
    assert run.data.params["attack.rate"] == "0.1"  # MLflow's parameters are written once
    assert run.data.params["new.knob"] == "3"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, template_db, make_trial):
    """What MLflow holds of three trials that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copy(template_db, folder)
    tracked(folder, [make_trial(n) for n in range(3)])
    return snapshot(folder)


@pytest.mark.parametrize("survived", [0, 1, 2, 3, 5, 9])
def test_killed_in_the_middle_of_a_delivery(run_dir, make_trial, monkeypatch, undisturbed, survived):
    from mlflow import MlflowClient

    trials = [make_trial(n) for n in range(3)]
    calls = iter(range(1000))

    def cut_off(original):
        def call(self, *args, **kwargs):
            if next(calls) >= survived:
                raise RuntimeError("killed")
            return original(self, *args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for step in ("create_run", "log_batch", "log_inputs", "log_artifact", "set_terminated"):
            patch.setattr(MlflowClient, step, cut_off(getattr(MlflowClient, step)))
        left = tracked(run_dir, trials, end=False)
        assert left.waiting
        assert "killed" in left.error
    assert tracked(run_dir, trials).waiting == 0
    content = snapshot(run_dir)
    assert content == undisturbed
    assert {status for status, *_ in content.values()} == {"FINISHED"}


def test_a_server_that_is_down_only_delays(run_dir, make_trial, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DEAD)
    trials = [make_trial(n) for n in range(3)]
    waiting = tracked(run_dir, trials)
    assert waiting.waiting == 4
    assert "refused" in waiting.error
    assert "bdtune sync" in waiting.line()
    [tried] = sync(run_dir)
    assert tried.status.waiting == 4
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    [done] = sync(run_dir)
    assert (done.sweep, done.delivered, done.status.waiting) == ("small", 4, 0)
    parents, children = runs(run_dir)
    assert {run.info.status for run in [*parents, *children.values()]} == {"FINISHED"}
    assert [again.delivered for again in sync(run_dir)] == [0]


def test_sync_closes_the_run_of_a_killed_driver(run_dir, make_trial):
    tracked(run_dir, [make_trial(1)], end=False)
    assert runs(run_dir)[0][0].info.status == "RUNNING"
    sync(run_dir)
    [parent] = runs(run_dir)[0]
    assert parent.info.status == "KILLED"
    tracked(run_dir, [make_trial(1)])
    assert runs(run_dir)[0][0].info.status == "FINISHED"


@pytest.mark.slow
def test_a_removed_database_is_filled_again(run_dir, make_trial, template_db):
    trials = [make_trial(1)]
    tracked(run_dir, trials)
    before = snapshot(run_dir)
    (run_dir / "mlflow.db").unlink()
    tracked(run_dir, trials)
    assert snapshot(run_dir) == before


def test_two_drivers_of_one_sweep_make_each_run_once(run_dir, make_trial):
    first = Tracker(run_dir, "small")
    second = Tracker(run_dir, "small")
    trials = [make_trial(n) for n in range(4)]
    for tracker in (first, second):
        tracker.start()
    for trial in trials:
        assert first.finished(trial)
        assert not second.finished(trial)
    result = SweepResult("small", tuple(trials))
    first.end(result)
    second.end(result)
    for tracker in (first, second):  # one of them delivers; the other may close with runs left
        tracker.close()
    assert {first.status().waiting, second.status().waiting} == {0}
    parents, children = runs(run_dir)
    assert len(parents) == 1
    assert len(children) == 4


def test_a_run_that_mlflow_refuses_does_not_block_the_rest(run_dir, make_trial, monkeypatch, caplog):
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    original = deliver.Delivery._write

    def refuse(self, run_id, run, signature):
        if run_id == "trial001":
            raise MlflowException("not that", error_code=INVALID_PARAMETER_VALUE)
        original(self, run_id, run, signature)

    monkeypatch.setattr(deliver.Delivery, "_write", refuse)
    assert tracked(run_dir, [make_trial(n) for n in range(3)]).waiting == 0
    assert "not that" in caplog.text
    assert runs(run_dir)[1]["trial002"].info.status == "FINISHED"


def test_sweeps_of_one_name_stay_apart_on_a_shared_store(run_dir, make_trial, tmp_path_factory):
    shared = f"sqlite:///{run_dir / 'mlflow.db'}"
    for name in ("anna", "ben"):
        tracked(tmp_path_factory.mktemp(name), [make_trial(1)], tracking_uri=shared)
    mlflow = client(run_dir)
    found = mlflow.search_runs([mlflow.get_experiment_by_name("small").experiment_id])
    assert len(found) == 4


DRIVERS = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from bdtune.trials.results import TrialResult
from bdtune.tracking import mlflow_log
from bdtune.tracking.mlflow_log import Tracker

mlflow_log.courier.deliver = lambda delivery: delivery.round()  # here, where it can be killed

def drive(run_dir, left):
    if left >= 0:
        def die_later(self, *args, _original=MlflowClient.set_terminated, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return _original(self, *args, **kwargs)
        MlflowClient.set_terminated = die_later
    tracker = Tracker(Path(run_dir), "small")
    tracker.start()
    for number in range(4):
        tracker.finished(TrialResult(f"trial{number}", "done", {"seed": number}, {"acc": 0.5}, ended=1.7e9))
    tracker.close()
    os._exit(0)

def started(run_dir, left):
    if (child := os.fork()) == 0:
        try:
            drive(run_dir, left)
        finally:
            os._exit(1)
    return child

for line in sys.stdin:
    run_dir, *dies_after = line.split()
    children = [started(run_dir, int(left)) for left in dies_after]
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""
"""Each line starts drivers at once, as forks; their exit codes answer it."""


@pytest.fixture(scope="module")
def drive():
    """Run drivers in processes of their own and return their exit codes; -1: none dies."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", DRIVERS], **pipes) as process:

        def ask(run_dir, *dies_after):
            process.stdin.write(f"{run_dir} {' '.join(map(str, dies_after))}\n")
            process.stdin.flush()
            return [int(code) for code in process.stdout.readline().split()]

        yield ask
        process.stdin.close()


def test_a_driver_that_is_killed_frees_its_lock_and_leaves_nothing_twice(run_dir, drive):
    assert drive(run_dir, 2) == [-9]
    parents, children = runs(run_dir)
    assert [run.info.status for run in parents] == ["RUNNING"]
    assert [run.info.status for run in children.values()].count("FINISHED") == 2
    [done] = sync(run_dir)
    assert (done.status.waiting, done.status.error) == (0, None)
    parents, children = runs(run_dir)
    assert [run.info.status for run in parents] == ["KILLED"]
    assert [run.info.status for run in children.values()] == ["FINISHED"] * 4


class Slow:
    """A server that takes its time, until it is let go."""

    def __init__(self, monkeypatch):
        self.go = threading.Event()
        monkeypatch.setattr(deliver.Delivery, "round", lambda *_, **__: self.go.wait(60))
        monkeypatch.setattr(mlflow_log, "NOTICED_S", 0.05)


@pytest.fixture
def slow(monkeypatch):
    server = Slow(monkeypatch)
    yield server
    server.go.set()


def test_a_slow_server_is_waited_for_with_a_word_and_no_longer_than_asked(run_dir, make_trial, slow):
    tracker = Tracker(run_dir, "small")
    tracker.start()
    tracker.finished(make_trial(1))
    said: list[str] = []
    began = time.monotonic()
    assert tracker.close(0.3, say=said.append).waiting == 2
    assert time.monotonic() - began < 5
    assert said == [
        f"waiting for MLflow at {tracker.store.key}, 0.3 s at most; Ctrl-C leaves the rest to `bdtune sync`"
    ]


def test_ctrl_c_ends_the_wait_for_a_slow_server(run_dir, make_trial, slow):
    tracker = Tracker(run_dir, "small")
    tracker.start()
    tracker.finished(make_trial(1))

    def interrupt(_text: str) -> None:
        raise KeyboardInterrupt

    assert tracker.close(60.0, say=interrupt).waiting == 2


def test_two_processes_that_deliver_at_once_make_each_run_once(run_dir, drive):
    assert drive(run_dir, -1, -1) == [0, 0]
    [done] = sync(run_dir)
    assert done.status.waiting == 0
    parents, children = runs(run_dir)
    assert (len(parents), len(children)) == (1, 4)


def test_sync_asks_mlflow_itself(run_dir, make_trial, template_db):
    tracked(run_dir, [make_trial(1), make_trial(2)])
    before = snapshot(run_dir)
    shutil.copy(template_db, run_dir / "mlflow.db")  # a server that lost what it held
    assert [done.delivered for done in sync(run_dir)] == [3]
    assert snapshot(run_dir) == before


def test_without_what_is_remembered_mlflow_is_asked_in_pages(run_dir, make_trial, monkeypatch):
    trials = [make_trial(n) for n in range(5)]
    tracked(run_dir, trials)
    before = snapshot(run_dir)
    (run_dir / "sweeps" / "small" / "delivered.json").write_text("{torn")
    monkeypatch.setattr(deliver, "PAGE", 2)
    monkeypatch.setattr(deliver.Delivery, "_deliver", lambda *_: pytest.fail("MLflow holds everything"))
    assert tracked(run_dir, trials).waiting == 0
    assert snapshot(run_dir) == before


def test_a_run_that_was_deleted_in_mlflow_stays_deleted(run_dir, make_trial):
    tracked(run_dir, [make_trial(1), make_trial(2)])
    client(run_dir).delete_run(runs(run_dir)[1]["trial001"].info.run_id)
    assert [done.delivered for done in sync(run_dir)] == [0]
    assert set(runs(run_dir)[1]) == {"trial002"}


def test_a_missing_artifact_is_skipped_with_a_warning(run_dir, make_trial, caplog):
    tracked(run_dir, [make_trial(1)], artifacts=[(run_dir / "gone.png", "")])
    assert "gone.png" in caplog.text
    assert runs(run_dir)[0][0].info.status == "FINISHED"


def test_pending_trials_are_not_recorded(run_dir, make_trial):
    tracker = Tracker(run_dir, "small")
    assert not tracker.finished(make_trial(1, status="pending"))
    assert tracker.close().waiting == 0
    assert not (run_dir / "sweeps").exists()


def test_a_free_rerun_imports_no_mlflow(run_dir, make_trial):
    tracked(run_dir, [make_trial(1)])
    script = f"""
import sys
import threading
from pathlib import Path
from bdtune.trials.results import TrialResult, SweepResult
from bdtune.tracking.mlflow_log import Tracker
trial = TrialResult.from_json({make_trial(1).to_json(curves=True)!r})
tracker = Tracker(Path({str(run_dir)!r}), "small")
tracker.start()
assert not tracker.finished(trial)
assert not tracker.end(SweepResult("small", (trial,), "trial001"))
assert tracker.close().waiting == 0
assert not {{"mlflow", "torch", "ray"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_mlflow_is_left_alone_until_a_trial_runs(run_dir, make_trial, monkeypatch):
    monkeypatch.setattr(mlflow_log, "HEAD_START_S", 60.0)
    tracker = Tracker(run_dir, "small")
    rounds = threading.Event()
    monkeypatch.setattr(tracker.delivery, "round", rounds.set)
    tracker.start()
    assert not rounds.wait(0.3)
    tracker.began(make_trial(1, status="pending"))
    assert rounds.wait(30)
    tracker.close()


@pytest.mark.slow
def test_a_database_whose_making_was_killed_is_made_again(tmp_path, make_trial):
    (tmp_path / ".mlflow.db.new").write_bytes(b"half a schema")
    (tmp_path / ".mlflow.db.new-journal").write_bytes(b"half")
    assert tracked(tmp_path, [make_trial(1)], tracking_uri=f"sqlite:///{tmp_path}/mlflow.db").waiting == 0
    assert sorted(path.name for path in tmp_path.glob("*mlflow*")) == [".mlflow.db.lock", "mlflow.db"]
    assert len(runs(tmp_path)[1]) == 1


def test_of_a_database_error_the_line_that_says_what_is_wrong_is_said():
    found = (
        "(raised as a result of Query-invoked autoflush)\n(sqlite3.OperationalError) disk is full\n[SQL: ..."
    )
    assert mlflow_log._gist(RuntimeError(found)) == "(sqlite3.OperationalError) disk is full"
    assert mlflow_log._gist(RuntimeError("down")) == "down"
    assert mlflow_log._gist(RuntimeError()) == ""

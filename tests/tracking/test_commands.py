from __future__ import annotations

import socket

import pytest

from bdtune.errors import UserError
from bdtune.tracking import browser, commands, origin
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.store import TrackingStore


def test_the_address_comes_from_the_argument_then_the_variable_then_the_run_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = TrackingStore.of(tmp_path)
    assert store.uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert store.uri.startswith("sqlite:////")
    assert store.own
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example:8443")
    store = TrackingStore.of(tmp_path)
    assert not store.own
    assert store.database is None
    assert store.artifact_location("x") is None
    assert store.key == "https://mlflow.example:8443"
    assert TrackingStore.of(tmp_path, "sqlite:////other/m.db").database.as_posix() == "/other/m.db"


def test_artifact_folders_cannot_leave_the_run_directory(tmp_path):
    location = TrackingStore.of(tmp_path, f"sqlite:///{tmp_path}/m.db").artifact_location("../a/b c")
    assert location == (tmp_path / "artifacts" / "_a_b_c").as_uri()
    assert TrackingStore.of(tmp_path, f"sqlite:///{tmp_path}/m.db").artifact_location("..").endswith("/study")


def test_the_server_is_small_and_local(tmp_path):
    command = commands.server_command(TrackingStore.of(tmp_path), 5001)
    line = " ".join(command)
    assert "--host 127.0.0.1 --port 5001 --workers 1" in line
    assert commands.server_environment()["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_ui_says_why_there_is_nothing_to_open(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="run a sweep first"):
        commands.ui(tmp_path)
    with pytest.raises(UserError, match=r"open that address"):
        commands.ui(tmp_path, tracking_uri="http://127.0.0.1:9")


def test_ui_becomes_the_server(run_dir, monkeypatch):
    seen, opened = [], []
    monkeypatch.setattr(commands.browser, "open_later", lambda *words: opened.append(words))
    monkeypatch.setattr(commands.os, "execve", lambda *words: seen.append(words))
    commands.ui(run_dir, port=5002)
    [(program, command, environment)] = seen
    assert opened == []  # nobody looks at a screen here
    assert command[0] == program
    assert "5002" in command
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_doctor_lists_the_store_and_what_waits(run_dir, make_trial, monkeypatch):
    assert "MB" in "\n".join(line for _, line in commands.doctor_lines(run_dir))
    tracker = Tracker(run_dir, "small", tracking_uri="http://127.0.0.1:9")
    tracker.finished(make_trial(1))
    tracker.close()
    found = commands.doctor_lines(run_dir, "http://127.0.0.1:9")
    assert not any(good for good, _ in found)
    lines = "\n".join(line for _, line in found)
    assert "refused" in lines
    assert "sweep small: 2 runs wait" in lines


def test_sync_leaves_a_running_sweep_to_its_driver(run_dir, make_trial, monkeypatch):
    tracker = Tracker(run_dir, "small", tracking_uri="http://127.0.0.1:9")
    tracker.start()
    tracker.finished(make_trial(1))
    [done] = commands.sync(run_dir)
    assert (done.delivered, done.status.error) == (0, "the sweep is running")
    tracker.close()


def test_every_run_says_who_and_what(monkeypatch):
    monkeypatch.setattr(origin, "git_commit", lambda: "0123456789ab+")
    tags = origin.common_tags.__wrapped__()  # the process remembers those of an earlier test
    assert tags["bdtune.version"]
    assert tags["mlflow.source.git.commit"] == "0123456789ab"


def test_ui_names_the_runs_of_each_sweep_in_their_view_and_opens_the_last(
    run_dir, make_trial, monkeypatch, capsys
):
    ids = {}
    for name in ("first", "second"):
        tracker = Tracker(run_dir, name)
        tracker.start()
        tracker.finished(make_trial(1))
        assert tracker.close().waiting == 0
    ids = dict(commands.experiments(TrackingStore.of(run_dir)))
    assert list(ids) == ["second", "first"]
    opened = []
    monkeypatch.setattr(commands.browser, "has_screen", lambda: True)
    monkeypatch.setattr(commands.browser, "open_later", lambda *words: opened.append(words))
    monkeypatch.setattr(commands.os, "execve", lambda *words: None)
    commands.ui(run_dir, port=5002)
    page = f"http://127.0.0.1:5002/#/experiments/{ids['second']}/runs?viewStateShareKey=bdtune&workflowType=machine_learning"
    assert opened == [(page, 5002)]
    said = capsys.readouterr().err
    assert f"second: {page}\n" in said
    assert f"/experiments/{ids['first']}/runs" in said


def test_a_page_is_opened_once_its_server_answers(monkeypatch):
    opened = []
    monkeypatch.setattr(browser.webbrowser, "open", lambda page: opened.append(page) or True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert browser.open_when_served("page", server.getsockname()[1])
    assert opened == ["page"]
    assert not browser.open_when_served("page", 9, patience_s=0.3)
    assert opened == ["page"]

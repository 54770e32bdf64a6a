from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from bdtune.cluster import scratch as module
from bdtune.cluster.scratch import OLD_S, OWNER, clear_left, scratch
from bdtune.engine.owner import beside, me
from tests.engine.test_owner import of


@pytest.fixture
def sleeper():
    """A process that outlives its starter."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def ended_pid():
    """Return the number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def left_by(folder, holder, *processes):
    folder.mkdir(parents=True)
    (folder / OWNER).write_text(json.dumps({"owner": holder, "processes": list(processes)}))
    return folder


def test_a_scratch_folder_notes_what_was_started_and_goes_at_the_end(tmp_path, sleeper):
    with scratch(tmp_path / "sweeps" / "a") as own:
        note = json.loads((own / OWNER).read_text())
        assert note["owner"]["pid"] == os.getpid()
        assert sleeper.pid in [process["pid"] for process in note["processes"]]
        clear_left(tmp_path / "sweeps")
        assert own.exists(), "of a start that is alive"
    assert not own.exists()


def test_what_a_killed_start_left_is_removed_and_its_processes_end(tmp_path, sleeper):
    import psutil

    running = {**me(), "pid": sleeper.pid, "started": psutil.Process(sleeper.pid).create_time()}
    gone = {**me(), "started": me()["started"] - 100}
    reused = {**me(), "started": me()["started"] - 100}  # the number of this very process, given away
    old = left_by(tmp_path / "b" / "tune" / "x", gone, running, reused)
    clear_left(tmp_path)
    assert not old.exists()
    assert sleeper.wait(timeout=10) == -9


def test_a_start_that_is_killed_before_it_could_say_whose_its_folder_is_leaves_none(tmp_path, monkeypatch):
    def dies(own):
        (own / OWNER).write_text('{"own')
        raise SystemExit

    monkeypatch.setattr(module, "note_processes", dies)
    with pytest.raises(SystemExit), scratch(tmp_path / "sweeps" / "a"):
        pass
    [left] = (tmp_path / "sweeps" / "a" / "tune").iterdir()
    clear_left(tmp_path / "sweeps")
    assert left.exists(), "its maker is alive"
    of(left, {"pid": ended_pid()})
    clear_left(tmp_path / "sweeps")
    assert not list((tmp_path / "sweeps" / "a" / "tune").iterdir())


def test_files_that_a_killed_start_was_writing_for_its_sweep_are_removed(tmp_path):
    pid = ended_pid()
    for folder in ("a", "a/runs", "a/asked", "a/pictures"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "whole.json").write_text("{}")
        path = beside(tmp_path / folder / "whole.json")
        path.write_text("{")
        of(path, {"pid": pid})
    clear_left(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"whole.json"}


def test_another_machines_folder_stays_until_it_is_old(tmp_path, sleeper):
    elsewhere = left_by(tmp_path / "a" / "tune" / "x", {**me(), "host": "another"})
    unnamed = tmp_path / "a" / "tune" / "y"
    unnamed.mkdir()
    clear_left(tmp_path)
    assert elsewhere.exists()
    assert unnamed.exists()
    long_ago = time.time() - OLD_S - 60
    os.utime(unnamed, (long_ago, long_ago))
    clear_left(tmp_path)
    assert not unnamed.exists()

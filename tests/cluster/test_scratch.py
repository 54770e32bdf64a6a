from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from bdtune.cluster.scratch import OLD_S, OWNER, clear_left, scratch
from bdtune.engine.owner import me


@pytest.fixture
def sleeper():
    """A process that outlives its starter."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


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

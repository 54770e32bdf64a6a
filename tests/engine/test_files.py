from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
import threading

import pytest
from filelock import Timeout

from bdtune.engine.files import append_line, file_lock

HOLDER = """
import sys
from pathlib import Path
from bdtune.engine.files import file_lock
lock = file_lock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_dies_with_its_holder(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            file_lock(tmp_path / "lock").acquire(blocking=False)
        holder.kill()
        holder.wait()
        with file_lock(tmp_path / "lock").acquire(timeout=10):
            pass


def test_any_thread_may_release_a_lock(tmp_path):
    lock = file_lock(tmp_path / "lock")
    lock.acquire()
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    file_lock(tmp_path / "lock").acquire(blocking=False).lock.release()


def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(OSError, match="no locks"):
        file_lock(tmp_path / "lock").acquire()


def test_a_line_that_a_killed_process_tore_does_not_take_the_next_one_with_it(tmp_path):
    file = tmp_path / "lines"
    append_line(file, "one")
    with file.open("a") as stream:
        stream.write('{"tor')
    append_line(file, "two")
    append_line(file, "three")
    assert file.read_text().splitlines() == ["one", '{"tor', "two", "three"]

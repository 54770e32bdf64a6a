from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from bdtune.cluster import daemons
from bdtune.cluster.daemons import RayDiedError, watched
from bdtune.cluster.session import session
from tests.cluster.test_session import Starting


@pytest.fixture
def daemon(tmp_path):
    """A process of this one that is called as Ray's."""
    program = tmp_path / "raylet"
    shutil.copy(shutil.which("sleep"), program)
    with subprocess.Popen([program, "60"]) as process:
        yield process
        process.kill()


def waits_for(daemon):
    """Do what Tune does when a daemon dies: wait, and take any `Exception` for a trial's."""
    daemon.kill()
    try:
        time.sleep(30)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # Ray raises a new one
    except Exception:
        pytest.fail("it must get through")


def test_a_daemon_that_dies_ends_the_block_in_words(daemon):
    before = signal.getsignal(signal.SIGUSR2)
    begun = time.monotonic()
    with pytest.raises(RayDiedError, match="process raylet was killed"), watched():
        waits_for(daemon)
    assert time.monotonic() - begun < 10
    assert signal.getsignal(signal.SIGUSR2) == before


def test_a_block_that_ends_by_itself_is_left_alone(daemon):
    with watched():
        pass
    daemon.kill()
    with watched():  # of no daemon: that of a cluster is not this machine's
        time.sleep(0.1)


DEAF = """
import subprocess, sys, time
from bdtune.cluster import daemons

daemons.TOLD_S = 0.2
with subprocess.Popen([sys.argv[1], "60"]) as process, daemons.watched():
    process.kill()
    while True:  # as in Ray's library, which waits for its GCS
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


def test_a_block_that_no_interrupt_ends_is_ended_with_its_process_in_words(daemon):
    command = [sys.executable, "-c", DEAF, daemon.args[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "interrupted\n" * daemons.TOLD_TIMES)
    assert done.stderr.splitlines() == [
        "error: Ray's process raylet was killed, or died for want of memory",
        "The same command goes on from here",
    ]


WAITING = """
import psutil
from bdtune.cluster import daemons
from bdtune.cluster.session import session

daemons.TOLD_S = 0.5
with session(cpus=1):
    import ray

    [gcs] = [process for process in psutil.Process().children() if process.name() == "gcs_server"]
    gcs.kill()
    print("asks", flush=True)
    ray.nodes()  # waits a minute in Ray's library, where no signal gets in
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_that_waits_for_its_gcs_in_rays_library_says_so_and_ends():
    command = [sys.executable, "-c", WAITING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (1, "asks\n"), done.stderr
    assert "error: Ray's process gcs_server was killed" in done.stderr
    assert "Failed to connect to GCS" not in done.stderr


def test_a_head_that_does_not_answer_any_more_ends_the_block_in_words(monkeypatch):
    monkeypatch.setattr(daemons, "HEAD_LOOK_S", 0.2)
    monkeypatch.setattr(daemons, "HEAD_GONE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = head.getsockname()
        with watched(address):
            time.sleep(2)
        gone = pytest.raises(
            RayDiedError, match=f"head of the Ray cluster at 127.0.0.1:{address[1]} does not"
        )
        with gone, watched(address):
            head.close()
            time.sleep(30)


def test_ctrl_c_stays_ctrl_c(daemon):
    with pytest.raises(KeyboardInterrupt) as caught, watched():
        raise KeyboardInterrupt
    assert caught.type is KeyboardInterrupt


def test_a_session_without_its_daemon_is_shut_down_at_once(monkeypatch, daemon):
    monkeypatch.setitem(sys.modules, "ray", ray := Starting(0))
    with pytest.raises(RayDiedError), session(cpus=2):
        waits_for(daemon)
    assert not ray.on

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

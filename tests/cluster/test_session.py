from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from bdtune.cluster.session import Needs, _fit, check_answers, session
from bdtune.errors import BdtuneError, UserError
from bdtune.tuning.schedulers import SCHEDULERS, Reduction, Rungs

NICENESS = "RAY_worker_niceness"


@pytest.mark.parametrize(
    ("node", "needs", "slots"),
    [
        ({"CPU": 8}, Needs(2), 4),
        ({"CPU": 8}, Needs(3), 2),
        ({"CPU": 0.5}, Needs(1), 0),
        ({"CPU": 8, "GPU": 2}, Needs(1, 0.5), 4),
        ({"CPU": 8, "GPU": 2}, Needs(1, 0.4), 4),  # two on each GPU, not five on both
        ({"CPU": 8, "GPU": 4}, Needs(1, 2), 2),
        ({"CPU": 8}, Needs(1, 0.1), 0),
        ({"CPU": 4}, Needs(1, helper_cpu=1), 2),
        ({"CPU": 0.3}, Needs(0.1), 3),
    ],
)
def test_trials_that_fit_on_a_node(node, needs, slots):
    assert _fit(node, needs) == slots


def test_a_streaming_trial_asks_for_a_cpu_beside_its_own():
    assert Needs(1, 0.5, 1).bundles == [{"CPU": 1, "GPU": 0.5}, {"CPU": 1}]
    assert Needs(2).bundles == [{"CPU": 2}]


class Starting:
    """A Ray that cannot be started so often."""

    def __init__(self, failures):
        self.left, self.on, self.stops = failures, False, 0

    def init(self, **options):
        assert options["num_cpus"] == 2
        self.left -= 1
        if self.left >= 0:
            raise Exception("The current node timed out during startup.")
        self.on = True

    def is_initialized(self):
        return self.on

    def shutdown(self):
        self.on, self.stops = False, self.stops + 1


def test_a_session_that_a_busy_machine_does_not_start_in_time_is_started_again(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ray", ray := Starting(2))
    with session(cpus=2):
        assert ray.on
    assert not ray.on
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_one_that_never_starts_is_the_machines_fault_and_is_said_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := Starting(9))
    with pytest.raises(BdtuneError, match=r"in 3 attempts: The current node timed out"), session(cpus=2):
        pass
    assert (ray.left, ray.stops) == (6, 4)


class Noting(Starting):
    """A Ray that notes what its processes would find in their environment."""

    def init(self, **options):
        super().init(**options)
        self.found = dict(os.environ)


def test_trials_have_the_priority_of_the_command_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := Noting(0))
    for given, found in ((None, "0"), ("7", "7")):
        monkeypatch.delenv(NICENESS, raising=False)
        if given:
            monkeypatch.setenv(NICENESS, given)
        with session(cpus=2):
            assert ray.found[NICENESS] == found


def test_hyperband_opens_a_band_of_trials_the_others_as_many_as_fit():
    assert SCHEDULERS.find("asha").most_open(Rungs(), 81, 2) == 2
    assert SCHEDULERS.find("hyperband").most_open(Reduction(), 81, 2) == 5 + 8 + 15 + 34 + 81
    assert SCHEDULERS.find("hyperband").most_open(Reduction(), 1, 4) == 4


@pytest.fixture
def closed_port():
    """Return a port of this machine at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_nobody_at_the_address_is_told_at_once_and_before_ray_starts(monkeypatch, closed_port):
    monkeypatch.setitem(sys.modules, "ray", Starting(9))
    before = time.monotonic()
    message = "--address: expected a running Ray cluster"
    with pytest.raises(UserError, match=message) as caught, session(f"127.0.0.1:{closed_port}"):
        pass
    assert time.monotonic() - before < 10
    assert "refused" in str(caught.value)
    assert "ray start --head" in str(caught.value)


@pytest.mark.parametrize("address", ["head", "head:", ":1", "head:0", "head:99999", "head:x"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(UserError, match="expected 'auto' or HOST:PORT"):
        check_answers(address)


def test_auto_stands_for_the_address_that_the_environment_gives(monkeypatch, closed_port):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_answers("auto")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(UserError, match=str(closed_port)):
        check_answers("auto")


def test_an_address_at_which_somebody_listens_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_answers(f"127.0.0.1:{server.getsockname()[1]}")
        check_answers(f"ray://127.0.0.1:{server.getsockname()[1]}")


def test_trials_that_no_machine_like_this_can_hold_are_told_before_ray_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := Starting(9))
    monkeypatch.setattr("bdtune.cluster.session._gpus", lambda: 0)
    for needs, said in ((Needs(1, 1), "1 GPUs"), (Needs(64), "64 CPUs")):
        with pytest.raises(UserError, match=f"expected a node with .*{said}"), session(cpus=2, needs=needs):
            pass
    assert ray.left == 9
    monkeypatch.setitem(sys.modules, "ray", Starting(0))
    with session(cpus=2, gpus=1, needs=Needs(1, 1)):  # as somebody asks for it, with GPUs that are not there
        pass


def test_a_start_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Starting(0))
    said = []
    with session(cpus=2, say=said.append):
        pass
    assert said == ["starting Ray on this machine, which takes some seconds ..."]

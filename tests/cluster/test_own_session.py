from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import pytest

from bdtune.cluster.session import session
from bdtune.cluster.signals import asked, check, ended_by_tune, handlers_stay, interruptible, remind_tune
from tests.cluster.test_session import Starting


class TakesSigterm(Starting):
    """A Ray that sets a handler of its own, as Ray does."""

    def init(self, **options):
        super().init(**options)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def test_sigterm_in_a_session_does_what_ctrl_c_does(monkeypatch):
    ray = TakesSigterm(failures=0)
    monkeypatch.setitem(sys.modules, "ray", ray)
    before = signal.getsignal(signal.SIGTERM)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # Tune leaves one of its own
    try:
        with pytest.raises(KeyboardInterrupt), session(cpus=2):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, interrupt)
    assert ray.stops == 1
    assert os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] == "1"


def test_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone():
    seen = []

    def work():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


class PartOfACluster(Starting):
    """A Ray on the head of a cluster, which it would join unless asked for a session of its own."""

    def init(self, **options):
        assert options.get("address") == "local", "num_cpus must not be provided"
        super().init(**options)


def test_a_local_session_is_started_on_the_head_of_a_cluster_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", ray := PartOfACluster(failures=0))
    with session(cpus=2):
        assert ray.on


class LosesSignals(Starting):
    """A Ray that a signal meets while it starts, and that catches whatever is raised then."""

    number = signal.SIGTERM

    def init(self, **options):
        with contextlib.suppress(BaseException):  # as some libraries do
            signal.raise_signal(self.number)
        super().init(**options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("failures", [0, 1])
def test_a_signal_that_is_lost_while_ray_starts_interrupts_too(monkeypatch, number, failures):
    monkeypatch.setitem(sys.modules, "ray", ray := LosesSignals(failures))
    ray.number = number
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), session(cpus=2):
        pass
    assert not ray.on
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_first_signal_is_for_tune_and_the_second_ends_the_block(monkeypatch):
    heard = []
    with interruptible(), ended_by_tune():
        signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))  # as Tune does
        signal.raise_signal(signal.SIGTERM)
        assert (heard, asked()) == ([1], True)
        remind_tune()
        assert heard == [1, 1]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert heard == [1, 1]


def test_a_signal_before_tune_listens_is_not_lost():
    with pytest.raises(KeyboardInterrupt), interruptible(), ended_by_tune():
        signal.raise_signal(signal.SIGINT)
    with interruptible():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), ended_by_tune():
            pytest.fail("somebody had asked for the end")


def test_a_signal_of_one_block_says_nothing_to_the_next():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGINT)
    with interruptible():
        check()


def test_ctrl_c_stays_ignored_where_it_was():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_handlers_that_a_block_leaves_behind_are_undone():
    before = signal.getsignal(signal.SIGINT)
    with handlers_stay():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) == before


def test_sigterm_interrupts_what_a_script_started_in_the_background_too():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell without job control does
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)

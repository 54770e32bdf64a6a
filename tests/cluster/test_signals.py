from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from bdtune.cluster.session import session
from bdtune.cluster.signals import sigterm_interrupts
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
    try:
        with pytest.raises(KeyboardInterrupt), session(cpus=2):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ray.stops == 1
    assert os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] == "1"


def test_the_handler_before_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_leaves_signals_alone():
    seen = []

    def work():
        with sigterm_interrupts():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]

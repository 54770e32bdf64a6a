"""Signals that come while Ray is shut down."""

from __future__ import annotations

import signal

import pytest

from bdtune.cluster.signals import asked, interruptible, put_off


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_must_not_be_cut_in_half_ends_before_a_signal_is_heeded(number):
    done = []

    def shut_down():
        with interruptible(), put_off():
            signal.raise_signal(number)
            signal.raise_signal(number)
            done.append("shut down")

    with pytest.raises(KeyboardInterrupt):
        shut_down()
    assert done == ["shut down"]
    assert asked()


def test_without_a_signal_nothing_is_changed():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with put_off():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

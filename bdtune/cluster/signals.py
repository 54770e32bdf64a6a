"""Signals in a driver: SIGTERM does what Ctrl-C does, and Ray's and Tune's own handlers do not stay."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def in_main_thread() -> bool:
    """Return whether this is the thread that has handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def handlers_stay() -> Iterator[None]:
    """Undo what the block does to the handlers of SIGINT and SIGTERM."""
    if not in_main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:  # else it is none of Python's
                signal.signal(each, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, which Slurm, Kubernetes and `kill` send, raise `KeyboardInterrupt` as Ctrl-C does."""
    with handlers_stay():
        if in_main_thread():
            signal.signal(signal.SIGTERM, _interrupt)
        yield


def _interrupt(*_: object) -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a script starts what it puts behind
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)  # Tune has a handler of its own, which ends the trials

"""Signals in a driver: SIGTERM does what Ctrl-C does, no library's handlers stay, and no signal is lost.

What a handler raises may be lost: a library catches everything, or it meets a destructor. So it is remembered
that somebody asked for the end, and looked at between the steps of a sweep.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

_asked = threading.Event()
"""Somebody asked for the end."""
_tune_runs = threading.Event()
"""Tune runs trials, which it ends in order at SIGUSR1."""


def in_main_thread() -> bool:
    """Return whether this is the thread that has handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def handlers_stay() -> Iterator[None]:
    """Undo what the block does to the handlers of SIGINT, SIGTERM and SIGUSR1."""
    if not in_main_thread():
        yield
        return
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:  # else it is none of Python's
                signal.signal(each, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, which Slurm, Kubernetes and `kill` send, raise `KeyboardInterrupt` as Ctrl-C does."""
    if not in_main_thread() or signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    _asked.clear()
    with handlers_stay():
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a script starts what it puts behind
            signal.signal(signal.SIGINT, _interrupt)
        yield


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Let the block end before Ctrl-C or SIGTERM is heeded: half a shutdown of Ray may end this process."""
    if not in_main_thread():
        yield
        return
    came: list[int] = []
    with handlers_stay():
        for each in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(each) != signal.SIG_IGN:
                signal.signal(each, lambda number, _: came.append(number))
        yield
    if came:
        _asked.set()
        raise KeyboardInterrupt


def _interrupt(*_: object) -> None:
    first = not _asked.is_set()
    _asked.set()
    if first and _tune_runs.is_set():
        signal.raise_signal(signal.SIGUSR1)
    else:
        raise KeyboardInterrupt


def asked() -> bool:
    """Return whether somebody asked for the end of the block that is interruptible."""
    return _asked.is_set()


def check() -> None:
    """Raise `KeyboardInterrupt` if somebody asked for the end."""
    if _asked.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def ended_by_tune() -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM of the block end Tune's trials in order, and the second everything."""
    if not in_main_thread():
        yield
        return
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # its own would not be remembered
    with handlers_stay():
        signal.signal(signal.SIGUSR1, _lost)
        _tune_runs.set()
        try:
            check()
            yield
        finally:
            _tune_runs.clear()


def _lost(*_: object) -> NoReturn:
    """Take SIGUSR1 before Tune does, or after."""
    raise KeyboardInterrupt


def remind_tune() -> None:
    """Tell Tune once more that somebody asked for the end: it may not have listened yet."""
    if _asked.is_set() and _tune_runs.is_set():
        signal.raise_signal(signal.SIGUSR1)

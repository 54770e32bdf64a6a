"""Signals in a driver: SIGTERM does what Ctrl-C does, and Ray's and Tune's own handlers do not stay."""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

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
            signal.signal(each, handler)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM, which Slurm, Kubernetes and `kill` send, raise `KeyboardInterrupt` as Ctrl-C does."""
    with handlers_stay():
        if in_main_thread() and signal.getsignal(signal.SIGINT) is not _interrupt:
            _sent.clear()
            signal.signal(signal.SIGINT, _interrupt)
            signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        yield


def heed() -> None:
    """Raise `KeyboardInterrupt` again if one was sent: libraries swallow it while they are imported."""
    if _sent.is_set():
        raise KeyboardInterrupt


_sent = threading.Event()


def _interrupt(*_: object) -> NoReturn:
    _sent.set()
    raise KeyboardInterrupt

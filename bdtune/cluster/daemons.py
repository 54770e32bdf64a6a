"""Ray's own processes, without which a driver cannot go on: those on this machine, and a cluster's head.

Ray itself waits a minute for its GCS and then ends the driver, or ends it at the next use of its object
store: without a word that helps.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, NoReturn

import psutil

from bdtune.cluster.signals import in_main_thread
from bdtune.errors import GOES_ON, BdtuneError

if TYPE_CHECKING:
    from collections.abc import Iterator

DAEMONS = ("raylet", "gcs_server")
LOOK_S = 0.5
"""Between two looks at them."""
TOLD_S, TOLD_TIMES = 5.0, 4
"""Between two interrupts of a main thread that goes on, and how many come before its process is ended."""
HEAD_LOOK_S, HEAD_GONE_S = 3.0, 15.0
"""Between two looks at a cluster's head; so long without an answer it is gone."""
KILLED = "Ray's process {} was killed, or died for want of memory"


class RayDiedError(BdtuneError):
    """A process that a Ray session needs has died."""


@contextlib.contextmanager
def watched(head: tuple[str, int] | None = None) -> Iterator[None]:
    """Raise `RayDiedError` in the block, in the main thread, once a daemon that this process started dies.

    Or once nobody answers at the host and port of a cluster's `head`. A block that no interrupt gets out of,
    as it waits for the GCS within Ray's library, ends with the process: said, and with status 1.
    """
    started = {process: process.name() for process in psutil.Process().children()}
    daemons = {process: name for process, name in started.items() if name in DAEMONS}
    if not (daemons or head) or not in_main_thread():  # nobody that could be stopped
        yield
        return
    dead: list[str] = []
    over, answers = threading.Event(), Head(head)

    def look() -> None:
        while not over.wait(LOOK_S):
            dead.extend(KILLED.format(name) for process, name in daemons.items() if _ended(process))
            dead.extend(answers.gone())
            if dead:
                break
        else:
            return
        for _ in range(TOLD_TIMES):
            waiting = threading.main_thread().ident
            assert waiting is not None
            signal.pthread_kill(waiting, signal.SIGUSR2)  # sent to its thread, it ends a system call
            if over.wait(TOLD_S):
                return
        _end(dead[0])

    before = signal.signal(signal.SIGUSR2, _interrupt)
    thread = threading.Thread(target=look, name="bdtune-daemons", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if dead:
            raise RayDiedError(dead[0]) from None
        raise
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR2, before)


class Head:
    """Whether a cluster's head still answers."""

    def __init__(self, address: tuple[str, int] | None) -> None:
        self._address = address
        self._looked_at = self._answered_at = time.monotonic()

    def gone(self) -> list[str]:
        """Return what to say of a head that has not answered for long; nothing while it may come back."""
        now = time.monotonic()
        if self._address is None or now - self._looked_at < HEAD_LOOK_S:
            return []
        self._looked_at = now
        with contextlib.suppress(OSError):
            socket.create_connection(self._address, timeout=HEAD_LOOK_S).close()
            self._answered_at = now
        if now - self._answered_at < HEAD_GONE_S:
            return []
        return ["the head of the Ray cluster at {}:{} does not answer any more".format(*self._address)]


def _end(reason: str) -> NoReturn:
    """End this process as a kill would, which a sweep survives."""
    print(f"error: {reason}\n{GOES_ON}", file=sys.stderr, flush=True)
    os._exit(1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt  # Tune catches every `Exception`, and Ray makes any other this one


def _ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True

"""Ray's own processes on this machine, without which a driver cannot go on.

Ray itself waits a minute for its GCS, or ends the driver without a word at the next use of its object store.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from typing import TYPE_CHECKING, NoReturn

import psutil

from bdtune.cluster.signals import in_main_thread
from bdtune.errors import BdtuneError

if TYPE_CHECKING:
    from collections.abc import Iterator

DAEMONS = ("raylet", "gcs_server")
LOOK_S = 0.5
"""Between two looks at them."""


class RayDiedError(BdtuneError):
    """A process that a Ray session needs has died."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Raise `RayDiedError` in the block, in the main thread, once a daemon that this process started dies."""
    started = {process: process.name() for process in psutil.Process().children()}
    daemons = {process: name for process, name in started.items() if name in DAEMONS}
    if not daemons or not in_main_thread():  # a cluster's, or nobody that could be stopped
        yield
        return
    dead: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_S):
            dead.extend(name for process, name in daemons.items() if _ended(process))
            if dead:
                waiting = threading.main_thread().ident
                assert waiting is not None
                signal.pthread_kill(waiting, signal.SIGUSR2)  # sent to its thread, it ends a system call
                return

    before = signal.signal(signal.SIGUSR2, _interrupt)
    thread = threading.Thread(target=look, name="bdtune-daemons", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        if dead:
            raise RayDiedError(f"Ray's process {dead[0]} was killed, or died for want of memory") from None
        raise
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR2, before)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt  # Tune catches every `Exception`, and Ray makes any other this one


def _ended(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True

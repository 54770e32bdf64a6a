"""A process beside the driver that delivers runs to MLflow, which takes an interpreter some 75 ms a run.

One process serves all sweeps of a driver. It is asked for one round of one sweep at a time, over its standard
input and output, one JSON value a line; it ends when the driver does. The driver holds the sweep's claim.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bdtune.errors import BdtuneError
from bdtune.tracking.deliver import Delivery
from bdtune.tracking.store import TrackingStore

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("bdtune.tracking")


class NotDeliveredError(BdtuneError):
    """A round failed; the message is MLflow's."""


class Courier:
    """Starts the process with the first round, and again if it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()

    def round(self, delivery: Delivery) -> int:
        """Have what is pending delivered, return how many runs; 0 when another process delivers this sweep.

        Raises `NotDeliveredError` for whatever MLflow raises, and when the process dies.
        """
        if not delivery.pending() or not delivery.claim():
            return 0
        store = delivery.store
        request = {
            "claim": delivery.claimed,
            "run_dir": str(store.run_dir),
            "uri": store.uri,
            "sweep": delivery.sweep,
        }
        with self._one_at_a_time:
            answer = self._ask(request)
        for warning in answer.get("warnings", ()):
            log.warning("%s", warning)
        if "error" in answer:
            raise NotDeliveredError(answer["error"])
        return int(answer["delivered"])

    def close(self) -> None:
        """End the process; what it has not delivered stays pending."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
            process.wait()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver, which ends this process
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            self.close()  # it may be about to end, which the next round would meet
            raise NotDeliveredError("the process that delivers to MLflow has ended") from error
        return answer


_courier = Courier()
atexit.register(_courier.close)


def deliver(delivery: Delivery) -> int:
    """Have what is pending delivered by this process's courier; see `Courier.round`."""
    return _courier.round(delivery)


class _Warnings(logging.Handler):
    """Keeps what is warned of, for the driver to say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _serve(requests: Callable[[], dict[str, Any]], answers: TextIO) -> None:
    """Answer requests for ever."""
    known: dict[str, Delivery] = {}  # by claim
    warnings = _Warnings()
    log.addHandler(warnings)
    log.propagate = False
    while True:
        request = requests()
        warnings.texts.clear()
        store = TrackingStore(Path(request["run_dir"]), request["uri"])
        delivery = known.setdefault(request["claim"], Delivery(store, request["sweep"]))
        try:
            answer: dict[str, Any] = {"delivered": delivery.deliver()}
        except Exception as error:  # whatever MLflow does, the driver says it and tries again
            delivery.forget()
            answer = {"error": str(error) or type(error).__name__}
        answers.write(json.dumps({**answer, "warnings": warnings.texts}) + "\n")
        answers.flush()


def main() -> None:
    """Serve until the driver ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what MLflow prints is no answer
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)  # also in the middle of a round: the next driver delivers the rest

    threading.Thread(target=read, daemon=True).start()
    _serve(requests.get, answers)


if __name__ == "__main__":
    main()

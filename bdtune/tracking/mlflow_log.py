"""MLflow for a sweep: an experiment per study, a parent run per sweep, a child run per trial.

The driver appends to an outbox and goes on; a thread delivers in batches. mlflow is imported by that thread,
and only when there is something new to deliver: a sweep that finds everything done writes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bdtune.tracking import values
from bdtune.tracking.courier import Courier
from bdtune.tracking.origin import common_tags
from bdtune.tracking.outbox import Outbox
from bdtune.tracking.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.trials.results import SweepResult, TrialResult

log = logging.getLogger("bdtune.tracking")

Artifact = tuple[Path, str]
"""A file and the folder it goes to in its run's artifacts ("" for the top)."""

GATHER_S = 2.0  # a batch: what finishes within this time goes together
RETRY_S = (5.0, 15.0, 60.0)  # waits after the first, second and later failures


@dataclass(frozen=True)
class TrackingStatus:
    """What MLflow has been told: `waiting` events are still in the outbox, `error` says why."""

    store: str
    waiting: int = 0
    error: str | None = None

    def line(self) -> str:
        """Return one line for a person."""
        if not self.waiting:
            return f"MLflow: {self.store}"
        reason = f" ({self.error})" if self.error else ""
        return f"MLflow: {self.waiting} events wait in the outbox{reason}; `bdtune sync` delivers them"


class Tracker:
    """Tells MLflow about one sweep; used by the driver only.

    `study` names the experiment, `axes` the parameters that vary (they make the runs' names); `params`,
    `tags` and `artifacts` belong to the parent run. No call waits for MLflow but `close`.
    """

    def __init__(
        self,
        run_dir: Path,
        sweep: str,
        *,
        study: str | None = None,
        axes: Sequence[str] = (),
        tracking_uri: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Iterable[Artifact] = (),
    ) -> None:
        self.store = Store.of(run_dir, tracking_uri)
        self.sweep = sweep
        self.axes = tuple(axes)
        self._names = {"study": study or sweep, "sweep": sweep}
        self._about = {"params": values.params_of(params or {}), "tags": dict(tags or {})}
        self._files = tuple(artifacts)
        self.outbox = Outbox(self.store.run_dir / "sweeps" / sweep)
        self._courier = Courier(self.outbox, self.store, sweep)
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._error: str | None = None

    def start(self) -> None:
        """Announce a new sweep, and deliver what an earlier start could not."""
        if not self.outbox.counts.total():
            self._announce()
        if self._courier.has_pending():
            self._poke()

    def finished(self, trial: TrialResult, artifacts: Iterable[Artifact] = ()) -> bool:
        """Record a trial that ended; return False where exactly that is recorded already, and do nothing."""
        identity = values.identity_of(trial)
        if trial.status == "pending" or self.outbox.has("trial", trial.id, identity):
            return False
        curves = {stage: values.thinned(rows) for stage, rows in trial.curves.items()}
        body = {
            **self._body(artifacts),
            "name": values.run_name(trial, self.axes),
            "trial": {**trial.to_json(), "curves": curves},
        }
        if trial.ended:
            body["time"] = round(trial.ended * 1000)
        if self.outbox.last in (None, "end"):
            self._announce()
        new = self.outbox.append("trial", trial.id, identity, body)
        if new:
            self._poke()
        return new

    def end(
        self,
        result: SweepResult,
        status: Literal["done", "failed", "interrupted"] = "done",
        *,
        note: str = "",
        artifacts: Iterable[Artifact] = (),
    ) -> bool:
        """Record the end of the sweep; return False where it ended like this before and nothing came since.

        `note` is Markdown for the parent run's page.
        """
        body = {
            **self._body(artifacts),
            "status": status,
            "metrics": values.sweep_metrics(result),
            "tags": values.selection_tags(result),
            "note": values.cut(note, values.TAG_LENGTH),
        }
        new = self.outbox.append("end", self.sweep, [status, self.outbox.counts["trial"]], body)
        if new:
            self._poke()
        return new

    def status(self) -> TrackingStatus:
        """Return what waits, without importing mlflow."""
        return TrackingStatus(self.store.key, len(self.outbox.pending(self.store.key)), self._error)

    def close(self, timeout_s: float = 60.0) -> TrackingStatus:
        """Try once more to deliver everything, for `timeout_s` at most; what is left waits in the outbox."""
        if self._courier.has_pending():
            self._poke()
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._thread is None or not self._thread.is_alive():
            self._courier.release()
        return self.status()

    # --------------------------------------------------------------------------------------------- internals

    def _body(self, artifacts: Iterable[Artifact]) -> dict[str, Any]:
        files = [[_relative(path, self.store.run_dir), folder] for path, folder in artifacts]
        now = round(time.time() * 1000)
        return {**self._names, "common": common_tags(), "time": now, "artifacts": files}

    def _announce(self) -> None:
        body = {**self._body(self._files), **self._about}
        # the count makes a sweep that goes on after its end an event of its own
        if self.outbox.append("sweep", self.sweep, self.outbox.counts["trial"], body):
            self._poke()

    def _poke(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="bdtune-tracking", daemon=True)
            self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        failures = 0
        while True:
            self._wake.wait()
            closing = self._closing.is_set()
            self._wake.clear()
            try:
                self._courier.round()
                failures, self._error = 0, None
                wait = GATHER_S
            except Exception as error:  # whatever MLflow does, the sweep goes on: the outbox has everything
                self._courier.forget()
                if not failures:
                    log.warning("MLflow has to wait, the outbox keeps everything: %s", error)
                self._error = str(error).strip().partition("\n")[0]
                wait = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                self._wake.set()
            if closing:
                return
            self._closing.wait(wait)


def _relative(path: Path, run_dir: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(run_dir) if path.is_relative_to(run_dir) else path)

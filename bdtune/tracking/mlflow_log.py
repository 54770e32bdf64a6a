"""MLflow for a sweep: an experiment and a parent run for the sweep, a child run per trial.

The driver writes each run to a file and goes on; another process delivers them and imports mlflow, and only
when there is something new to deliver. A thread waits for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bdtune.engine.files import replace_file
from bdtune.tracking import courier, values
from bdtune.tracking.deliver import Delivery
from bdtune.tracking.experiment import FILE, tags_of
from bdtune.tracking.origin import common_tags
from bdtune.tracking.runs import SWEEP, Run
from bdtune.tracking.store import TrackingStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from bdtune.config.sweep import SweepSpec
    from bdtune.trials.results import SweepResult, TrialResult

log = logging.getLogger("bdtune.tracking")

Artifact = tuple[Path, str]
"""A file and the folder it goes to in its run's artifacts ("" for the top)."""

HEAD_START_S = 10.0  # loading mlflow takes seconds, which the first trials need more: they start meanwhile
GATHER_S = 2.0  # a batch: what finishes within this time goes together
LIVE_S = 10.0  # a running trial's curves, and the parent's progress, are delivered so often
NOTICED_S = 3.0  # a wait at the end that is not yet worth a word
RETRY_S = (5.0, 15.0, 60.0)  # waits after the first, second and later failures


@dataclass(frozen=True)
class TrackingStatus:
    """What an MLflow store lacks: `waiting` runs, and why."""

    store: str
    waiting: int = 0
    error: str | None = None

    def line(self) -> str:
        """Return one line for a person."""
        if not self.waiting:
            return f"MLflow: {self.store}"
        reason = f" ({self.error})" if self.error else ""
        return f"MLflow: {self.waiting} runs are not delivered yet{reason}; `bdtune sync` delivers them"


@dataclass
class LiveRun:
    """A run that has not ended, and the points of its curves so far."""

    run: Run
    points: dict[tuple[str, int], float] = field(default_factory=dict)
    """Value by name and epoch."""
    written: float = -math.inf
    """When it was last written down, on the monotonic clock."""

    def add(self, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Add an epoch's finite numbers."""
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        self.points |= {(values.name(f"{role}/{key}"), epoch): value for key, value in finite.items()}

    def now(self) -> Run:
        """Return the run as it is now."""
        return replace(self.run, metrics=[(name, value, step) for (name, step), value in self.points.items()])


class Tracker:
    """Records one sweep for MLflow; used by the driver only.

    `axes` are the parameters that vary, which make the runs' names; `params`, `tags` and `artifacts` belong
    to the parent run. Only `close` waits for MLflow.
    """

    def __init__(
        self,
        run_dir: Path,
        sweep: str,
        *,
        axes: Sequence[str] = (),
        tracking_uri: str | None = None,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        artifacts: Iterable[Artifact] = (),
    ) -> None:
        self.store = TrackingStore.of(run_dir, tracking_uri)
        self.sweep = sweep
        self.axes = tuple(axes)
        self._params = values.params_of(params or {})
        self._tags = dict(tags or {})
        self._files = tuple(artifacts)
        self.delivery = Delivery(self.store, sweep)
        self.runs = self.delivery.runs
        before = self.runs.read(SWEEP)
        self._started = before.started if before else _now()
        self._open = before is not None and before.status == values.RUNNING
        self._live: dict[str, LiveRun] = {}
        self._expected = self._ended = 0
        self._told = -math.inf  # when the parent run last told its progress
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._under_way = threading.Event()  # a trial has begun: the driver has time
        self._closing = threading.Event()
        self._error: str | None = None

    def describe(self, spec: SweepSpec, *, expected: int = 0) -> None:
        """Write down what the experiment's page says of the sweep, of so many trials; before `start`."""
        self._expected = expected
        tags = json.dumps(tags_of(spec, self.axes, self._started), indent=1)
        replace_file(self.delivery.folder / FILE, tags.encode())

    def start(self) -> None:
        """Announce a new sweep, and deliver what an earlier start could not."""
        if self.delivery.claim():
            self.delivery.close_trials_left_open()
        if not self.runs.signatures():
            self._write_parent("running")
        if self.delivery.pending():
            self._poke()

    def began(self, trial: TrialResult) -> None:
        """Record a trial that runs now; `learned` adds to its curves, `finished` ends it."""
        if trial.id in self._live:
            return
        self._under_way.set()
        if not self._open:
            self._write_parent("running")
        now = _now()
        run = self._run(trial, values.RUNNING, now, now)
        self._live[trial.id] = LiveRun(
            replace(run, metrics=(), tags={**run.tags, "bdtune.status": "running"})
        )
        self._write_live(trial.id)

    def learned(self, trial: str, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Record a point of a running trial's curves; MLflow gets it with the next ones."""
        live = self._live.get(trial)
        if live is not None:
            live.add(role, epoch, metrics)
            if time.monotonic() - live.written >= LIVE_S:
                self._write_live(trial)

    def finished(self, trial: TrialResult, artifacts: Iterable[Artifact] = ()) -> bool:
        """Record a trial that ended; return False where exactly that is recorded already, and do nothing."""
        self._under_way.set()
        live = self._live.pop(trial.id, None)
        self._ended += trial.status != "pending"
        files = self._placed(artifacts)
        # Files that are asked for later make a run worth delivering again; pictures do not.
        kept = sorted({folder for _, folder in files} - {"", "pictures"})
        identity = [*values.identity_of(trial), *([kept] if kept else [])]
        if trial.status == "pending" or self.runs.has(trial.id, identity):
            return False
        if not self._open:
            self._write_parent("running")
        ended = round(trial.ended * 1000) if trial.ended else _now()
        started = round(trial.started * 1000) if trial.started else ended
        run = self._run(
            trial, values.TRIAL_STATUS[trial.status], live.run.started if live else started, ended
        )
        self.runs.write(trial.id, identity, replace(run, artifacts=files))
        self._tell_progress()
        self._poke()
        return True

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
        for trial in list(self._live):
            self._write_live(trial, interrupted=True)
        trials = {run: mark for run, mark in self.runs.signatures().items() if run != SWEEP}
        tags, best = values.selection_tags(result), values.best_trials(result)
        ended = sum(trial.status != "pending" for trial in result.trials)
        count = max(1, len(result.trials))
        noted = {"mlflow.note.content": note} if note else {}
        return self._write_parent(
            status,
            [trials, tags, best],
            tags={**tags, **noted, **_progress_tag(ended, count)},
            metrics=[*values.sweep_metrics(result), self._progress(ended / count)],
            artifacts=artifacts,
            best=best,
        )

    def abandon(self) -> None:
        """Record that the sweep could not be run, and stop."""
        for trial in list(self._live):
            self._write_live(trial, interrupted=True)
        self._write_parent("failed")
        self.close()

    def status(self) -> TrackingStatus:
        """Return what waits, without importing mlflow."""
        return TrackingStatus(self.store.key, len(self.delivery.pending()), self._error)

    def close(
        self, timeout_s: float = 30.0, say: Callable[[str], None] = lambda text: None
    ) -> TrackingStatus:
        """Try once more to deliver everything, for `timeout_s` at most; `bdtune sync` delivers the rest.

        A wait that a person notices is said, and Ctrl-C ends it.
        """
        if self.delivery.pending():
            self._poke()
        self._closing.set()
        self._under_way.set()
        self._wake.set()
        if self._thread is not None:
            with contextlib.suppress(KeyboardInterrupt):
                self._thread.join(min(NOTICED_S, timeout_s))
                if self._thread.is_alive() and timeout_s > NOTICED_S:
                    waiting = f"waiting for MLflow at {self.store.key}, {timeout_s:g} s at most"
                    say(f"{waiting}; Ctrl-C leaves the rest to `bdtune sync`")
                    self._thread.join(timeout_s - NOTICED_S)
        if self._thread is None or not self._thread.is_alive():
            self.delivery.release()
        return self.status()

    # --------------------------------------------------------------------------------------------- internals

    def _run(self, trial: TrialResult, status: str, started: int, time: int) -> Run:
        return Run(
            name=values.run_name(trial, self.axes),
            status=status,
            started=started,
            time=time,
            params=values.params_of(trial.params),
            tags={**common_tags(), **values.trial_tags(trial)},
            metrics=values.trial_metrics(trial, self.axes),
            dataset=values.dataset_of(trial),
        )

    def _write_live(self, trial: str, *, interrupted: bool = False) -> None:
        live = self._live.pop(trial) if interrupted else self._live[trial]
        live.written = time.monotonic()
        run = values.interrupted(live.now(), _now()) if interrupted else live.now()
        self.runs.write(trial, [run.status, run.started, len(live.points)], run)
        self._poke()

    def _tell_progress(self) -> None:
        """Write the parent run with how many trials have ended, every few seconds."""
        if self._expected and time.monotonic() - self._told >= LIVE_S:
            self._told = time.monotonic()
            tag = _progress_tag(self._ended, self._expected)
            part = self._progress(self._ended / self._expected)
            self._write_parent("running", tag, tags=tag, metrics=[part])

    def _progress(self, part: float) -> values.Metric:
        """Return the sweep's progress as a metric; its step counts seconds, so that the last one stands."""
        return "progress", min(1.0, part), max(1, (_now() - self._started) // 1000)

    def _write_parent(
        self,
        status: str,
        identity: Any = None,
        *,
        tags: Mapping[str, str] | None = None,
        metrics: Sequence[values.Metric] = (),
        artifacts: Iterable[Artifact] = (),
        best: Sequence[str] = (),
    ) -> bool:
        own = {"bdtune.role": "sweep", "bdtune.status": status}
        all_tags = {**common_tags(), **own, **self._tags, **(tags or {})}
        run = Run(
            name=self.sweep,
            status=values.SWEEP_STATUS[status],
            started=self._started,
            time=_now(),
            params=self._params,
            tags={key: values.cut(value, values.TAG_LENGTH) for key, value in all_tags.items()},
            metrics=metrics,
            artifacts=self._placed((*self._files, *artifacts)),
            best=best,
        )
        new = self.runs.write(SWEEP, [status, identity], run)
        self._open = status == "running"
        if new:
            self._poke()
        return new

    def _placed(self, artifacts: Iterable[Artifact]) -> list[tuple[str, str]]:
        return [(_relative(path, self.store.run_dir), folder) for path, folder in artifacts]

    def _poke(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="bdtune-tracking", daemon=True)
            self._thread.start()
        self._wake.set()

    def _work(self) -> None:
        self._under_way.wait(HEAD_START_S)
        failures = 0
        while True:
            self._wake.wait()
            closing = self._closing.is_set()
            self._wake.clear()
            try:
                courier.deliver(self.delivery)
                failures, self._error = 0, None
                wait = GATHER_S
            except Exception as error:  # whatever MLflow does, the sweep goes on: the files have everything
                self.delivery.forget()
                self._error = _gist(error)
                if not failures:
                    log.warning("not delivered to MLflow yet, nothing is lost: %s", self._error)
                wait = RETRY_S[min(failures, len(RETRY_S) - 1)]
                failures += 1
                self._wake.set()
            if closing:
                return
            self._closing.wait(wait)


def _gist(error: Exception) -> str:
    """Return the line of an error that says what is wrong; SQLAlchemy's may begin with how it was found."""
    lines = str(error).strip().split("\n")
    return next((line for line in lines if not line.startswith("(raised as a result of")), lines[0])


def _progress_tag(ended: int, of: int) -> dict[str, str]:
    return {"bdtune.progress": f"{ended} of {of} trials"}


def _now() -> int:
    return round(time.time() * 1000)


def _relative(path: Path, run_dir: Path) -> str:
    path = path.absolute()
    return str(path.relative_to(run_dir) if path.is_relative_to(run_dir) else path)

"""What a running sweep or campaign says: to the display, and to MLflow."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import yaml

from bdtune.config.trial import spec_to_dict
from bdtune.engine.files import replace_file
from bdtune.trials.sweep_folder import STORE, store_of
from bdtune.verbs.kept import kept_files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bdtune.config.sweep import Kept
    from bdtune.report.live import Progress
    from bdtune.tracking.mlflow_log import Tracker
    from bdtune.trials.ledger import Ledger
    from bdtune.trials.results import TrialResult
    from bdtune.verbs.weights import Weights


class Recorder:
    """Reports trials of a sweep to the tracker, in a thread of its own."""

    def __init__(self, tracker: Tracker, ledger: Ledger, folder: Path, keep: tuple[Kept, ...] = ()) -> None:
        self.tracker, self.ledger, self.folder, self.keep = tracker, ledger, folder, keep
        self._begun: set[str] = set()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="bdtune-recorder", daemon=True)
        self._thread.start()

    def trial_done(self, result: TrialResult) -> None:
        """Take in a finished trial."""
        self._queue.put(partial(self._record, self.own(result)))

    def own(self, result: TrialResult) -> TrialResult:
        """Return a trial's result as this sweep's: in a campaign, another sweep may have it as a baseline."""
        return replace(result, is_baseline=self.ledger.entries[result.id].is_baseline)

    def began(self, trial: str) -> None:
        """Take in that a trial runs; may be said again."""
        if trial not in self._begun:
            self._begun.add(trial)
            self._queue.put(partial(self._record_start, trial))

    def learned(self, trial: str, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take in a point of a running trial's curves."""
        self._queue.put(partial(self.tracker.learned, trial, role, epoch, metrics))

    def close(self) -> None:
        """Wait until all that was taken in is recorded; may be called again."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    def _record(self, result: TrialResult) -> None:
        entry, into = self.ledger.entries[result.id], self.folder / "kept"
        self.tracker.finished(result, kept_files(entry, self.ledger.resolver, self.keep, into))

    def _record_start(self, trial: str) -> None:
        self.tracker.began(self.ledger.result(self.ledger.entries[trial], "pending"))


class Screen:
    """Passes on what happens to trials: to the display, and to the recorders of sweeps that have them."""

    def __init__(self, progress: Progress, recorders: Sequence[Recorder], weights: Weights) -> None:
        self.progress, self.recorders, self.weights = progress, recorders, weights

    def trial_done(self, result: TrialResult) -> None:
        """A trial ended; of one that failed, say how to repeat it in one process."""
        self.progress.trial_done(result)
        self.weights.trial_done(result)
        recorders = self._of(result.id)
        for recorder in recorders:
            recorder.trial_done(result)
        if result.status == "failed" and recorders:
            line = leave_failed(recorders[0].folder, recorders[0].ledger, result.id)
            self.progress.message(line, always=True)

    def held(self, count: int) -> None:
        """So many trials wait for others."""
        self.progress.held(count)

    def message(self, text: str) -> None:
        """What the run does beside its trials."""
        self.progress.message(text)

    def stage(self, trial: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """A trial is in a stage."""
        self.progress.stage(trial, stage, epoch, epochs)
        for recorder in self._of(trial):
            recorder.began(trial)

    def remarked(self, trial: str, stage: str, text: str) -> None:
        """A trial's stage has something to say."""
        self.progress.remarked(trial, stage, text)

    def learned(self, trial: str, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial's stage has numbers of an epoch."""
        for recorder in self._of(trial):
            recorder.learned(trial, role, epoch, metrics)

    def _of(self, trial: str) -> list[Recorder]:
        return [recorder for recorder in self.recorders if trial in recorder.ledger.entries]


def leave_failed(folder: Path, ledger: Ledger, trial: str) -> str:
    """Leave a failed trial's settings in its sweep's folder; returns how to repeat it in one process."""
    file = folder / "failed" / f"{trial}.yaml"
    spec = spec_to_dict(ledger.entries[trial].spec)
    replace_file(file, yaml.safe_dump(spec, sort_keys=False).encode())
    store = f" --store {store_of(folder)}" if (folder / STORE).exists() else ""
    return f"repeat it with: bdtune run {file} --out {folder.parent.parent}{store}"

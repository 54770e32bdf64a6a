"""Delivery: makes an MLflow store hold a sweep's runs. Repeating it changes nothing.

A run in MLflow carries the signature of what it was made from as a tag. A run that is missing, is not ended,
or has another tag, is pending. `delivered.json` remembers what each store answered, so that a
sweep with nothing new need not import mlflow; it may be lost, and `bdtune sync` does not rely on it.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from typing import TYPE_CHECKING

from filelock import Timeout

from bdtune.engine.files import file_lock, replace_file
from bdtune.errors import BdtuneError
from bdtune.tracking import values
from bdtune.tracking.experiment import read_tags
from bdtune.tracking.runs import SWEEP, Run, Runs

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow import MlflowClient

    from bdtune.tracking.store import TrackingStore

log = logging.getLogger("bdtune.tracking")

PAGE = 1000  # runs asked for at once
SIGNATURE = "bdtune.signature"
REFUSED = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})
"""Error codes that no later attempt can change."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a later round tries again anyway
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


class UnreachableError(BdtuneError):
    """The MLflow server does not answer."""


def connect(store: TrackingStore) -> MlflowClient:
    """Import mlflow (seconds) and return a client; one process at a time makes a missing SQLite file."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient

    # it prints a stack of a database error, which is raised besides and said in a line
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if store.database is None:
        return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)
    store.database.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(store.database.with_name(f".{store.database.name}.lock")):
        if not store.exists:
            _create(store.database)
        return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def _create(database: Path) -> None:
    """Make a SQLite file beside its place and move it there: one killed meanwhile leaves no half schema."""
    from mlflow import MlflowClient

    building = database.with_name(f".{database.name}.new")
    for leftover in building.parent.glob(f"{building.name}*"):
        leftover.unlink()
    uri = f"sqlite:///{building}"
    MlflowClient(tracking_uri=uri, registry_uri=uri)
    building.replace(database)


class Delivery:
    """Delivers the runs of one sweep to one store; at most one process does at a time."""

    def __init__(self, store: TrackingStore, sweep: str) -> None:
        self.store, self.sweep = store, sweep
        self.folder = store.run_dir / "sweeps" / sweep
        self.runs = Runs(self.folder)
        self.claimed = ""
        """A new name for each claim: another process may have delivered between two of them."""
        self._lock = file_lock(self.folder / "delivery.lock")
        self._client: MlflowClient  # known, as the next four, once MLflow was asked
        self._experiment: str
        self._ids: dict[str, str]  # of the runs that MLflow holds
        self._best: set[str]  # those that are marked as best
        self._deleted: set[str]  # those that were deleted in MLflow
        self._held: dict[str, str] | None = None  # their signatures; None: not asked yet

    def pending(self) -> dict[str, str]:
        """Return the signatures of the runs that the store lacks, by id; does not import mlflow."""
        held = self._remembered().get(self.store.key, {}) if self._held is None else self._held
        held = held if self.store.exists else {}
        return {run: mark for run, mark in self.runs.signatures().items() if held.get(run) != mark}

    def claim(self) -> bool:
        """Try to become the one process that delivers this sweep; kept until `release` or death."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if not self._lock.is_locked:
                self._lock.acquire(blocking=False)
                self.claimed = uuid.uuid4().hex
        except Timeout:
            return False
        return True

    def release(self) -> None:
        """Let another process deliver."""
        self.forget()
        self._lock.release()

    def forget(self) -> None:
        """Ask MLflow anew what it holds, after a failure or when another process may deliver."""
        self._held = None

    def round(self, *, ask: bool = False) -> int:
        """Deliver what is pending and return how many runs; 0 when another process does it.

        With `ask` MLflow is compared even if all is remembered as delivered. Raises `UnreachableError` at
        once for a server that is down, and else what MLflow raises.
        """
        if not (ask or self.pending()) or not self.claim():
            return 0
        return self.deliver()

    def deliver(self) -> int:
        """Deliver what is pending and return how many runs; for whoever has claimed the sweep."""
        if reason := self.store.unreachable():
            raise UnreachableError(reason)
        if self._held is None or not self.store.exists:
            self._held = self._ask()
        try:
            pending = self.pending()
            for run_id in sorted(
                pending, key=lambda run_id: run_id == SWEEP
            ):  # the parent ends after its trials
                self._deliver(run_id, pending[run_id])
            return len(pending)
        finally:
            remembered = {**self._remembered(), self.store.key: self._held}
            replace_file(self.folder / "delivered.json", json.dumps(remembered).encode())

    def close_left_open(self) -> None:
        """Mark the sweep of a killed driver as interrupted; the claim proves that the driver is gone."""
        self.close_trials_left_open()
        self._close(SWEEP)

    def close_trials_left_open(self) -> None:
        """Mark the trials as interrupted that a killed driver left running; by the claim it is gone."""
        sweep = self.runs.read(SWEEP)
        if sweep is not None and sweep.status == values.RUNNING:  # else all trials had ended
            for run_id in self.runs.signatures().keys() - {SWEEP}:
                self._close(run_id)

    def _close(self, run_id: str) -> None:
        run = self.runs.read(run_id)
        if run is not None and run.status == values.RUNNING:
            last = round(self.runs.folder.stat().st_mtime * 1000)  # when the last run was written
            self.runs.write(run_id, ["interrupted", self.runs.signatures()], values.interrupted(run, last))

    def _remembered(self) -> dict[str, dict[str, str]]:
        try:
            return dict(json.loads((self.folder / "delivered.json").read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def _ask(self) -> dict[str, str]:
        """Return the signatures of the ended runs that MLflow holds of this sweep, and keep the ids of all.

        Runs that were deleted in MLflow count as held, so that they stay deleted.
        """
        self._client = connect(self.store)
        from mlflow.entities import ViewType

        self._experiment = self._described_experiment()
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in self._marks().items())
        found = []
        token: str | None = ""
        while token is not None:
            page = self._client.search_runs(
                [self._experiment], query, ViewType.ALL, PAGE, page_token=token or None
            )
            found += page
            token = page.token or None
        runs = {run.data.tags.get("bdtune.trial", SWEEP): run for run in found}
        self._ids = {run_id: run.info.run_id for run_id, run in runs.items()}
        self._best = {
            run_id for run_id, run in runs.items() if run_id != SWEEP and values.BEST in run.data.tags
        }
        self._deleted = {run_id for run_id, run in runs.items() if run.info.lifecycle_stage == "deleted"}
        ended = {run_id: run for run_id, run in runs.items() if run.info.status != values.RUNNING}
        return {run_id: run.data.tags.get(SIGNATURE, "") for run_id, run in ended.items()}

    def _described_experiment(self) -> str:
        """Return the id of the sweep's experiment, made if it is missing, with its tags as they are now."""
        tags = read_tags(self.folder)
        experiment = self._client.get_experiment_by_name(self.sweep)
        if experiment is None:
            location = self.store.artifact_location(self.sweep)
            return self._client.create_experiment(self.sweep, artifact_location=location, tags=dict(tags))
        for key, value in tags.items():
            if experiment.tags.get(key) != value:
                self._client.set_experiment_tag(experiment.experiment_id, key, value)
        return experiment.experiment_id

    def _marks(self) -> dict[str, str]:
        """Return the tags by which this sweep's runs are found again.

        On a shared server two people may each have a sweep of that name; in our own file they cannot.
        """
        if self.store.own:
            return {"bdtune.sweep": self.sweep}
        file = self.folder / "sweep.id"
        if not file.exists():
            replace_file(file, uuid.uuid4().hex.encode())
        return {"bdtune.sweep": self.sweep, "bdtune.sweep_id": file.read_text()}

    def _deliver(self, run_id: str, signature: str) -> None:
        """Deliver one run; one that MLflow refuses must not block the rest."""
        from mlflow.exceptions import MlflowException

        run = self.runs.read(run_id, signature)
        if run is None:  # replaced meanwhile: the next round delivers the new one
            return
        try:
            self._write(run_id, run, signature)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            log.warning("MLflow refuses run %s of sweep %s: %s", run_id, self.sweep, error)
        assert self._held is not None
        self._held[run_id] = signature

    def _write(self, run_id: str, run: Run, signature: str) -> None:
        """Write one run; its end comes last, and shows that the rest is there."""
        from mlflow.entities import Metric, Param, RunTag

        tags, params = {SIGNATURE: signature}, dict(run.params)
        if run_id in self._ids:
            to = self._ids[run_id]
            stored = self._client.get_run(to).data
            self._client.update_run(to, status=values.RUNNING)
            # what was true of the first attempt of a repeated trial only
            for tag in set(values.OPTIONAL_TAGS) & stored.tags.keys() - run.tags.keys():
                self._client.delete_tag(to, tag)
            params = {name: value for name, value in params.items() if name not in stored.params}
            tags |= run.tags
        else:
            to = self._create_run(run_id, run)
        self._client.log_batch(
            to,
            # A point of a curve keeps its time when it is delivered again, and is then stored once.
            metrics=[
                Metric(key, value, run.started if step else run.time, step)
                for key, value, step in run.metrics
            ],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        self._dataset(to, run)
        self._artifacts(to, run)
        if run_id == SWEEP:
            self._mark(set(run.best) & self._ids.keys() - self._deleted)
        if run.status != values.RUNNING:
            self._client.set_terminated(to, run.status, end_time=run.time)

    def _mark(self, best: set[str]) -> None:
        """Mark the runs of the best settings, and no others."""
        for run_id in self._best - self._deleted - best:
            self._client.delete_tag(self._ids[run_id], values.BEST)
        for run_id in best - self._best:
            self._client.set_tag(self._ids[run_id], values.BEST, "best")
        self._best = best

    def _create_run(self, run_id: str, run: Run) -> str:
        tags = {**run.tags, **self._marks()}
        if run_id != SWEEP:
            tags |= {"bdtune.trial": run_id, "mlflow.parentRunId": self._parent()}
        made = self._client.create_run(self._experiment, run.started, tags, run.name)
        self._ids[run_id] = made.info.run_id
        return made.info.run_id

    def _parent(self) -> str:
        if SWEEP not in self._ids:
            sweep = self.runs.read(SWEEP)
            assert sweep is not None, "the tracker writes the parent run first"
            self._create_run(SWEEP, sweep)
        return self._ids[SWEEP]

    def _dataset(self, to: str, run: Run) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if run.dataset is not None:
            tag = InputTag("mlflow.data.context", run.dataset["context"])
            about = {key: run.dataset[key] for key in ("name", "digest", "source")}
            dataset = Dataset(source_type="bdtune", **about)
            self._client.log_inputs(to, datasets=[DatasetInput(dataset=dataset, tags=[tag])])

    def _artifacts(self, to: str, run: Run) -> None:
        for path, folder in run.artifacts:
            file = self.store.run_dir / path  # an absolute path stays what it is
            if file.is_file():
                self._client.log_artifact(to, str(file), folder or None)
            else:
                log.warning("not in MLflow, the file is gone: %s", path)

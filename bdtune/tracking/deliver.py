"""Delivery: one outbox event at a time into MLflow, with the same outcome however often it is told."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdtune.tracking import values
from bdtune.trials.results import TrialResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow import MlflowClient
    from mlflow.entities import Run

    from bdtune.tracking.outbox import Entry
    from bdtune.tracking.store import Store

log = logging.getLogger("bdtune.tracking")

PAGE = 1000  # runs asked for at once
REFUSED = frozenset({"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"})
"""Error codes that no later attempt can change."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output belongs to --json
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the outbox tries again anyway
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}


def connect(store: Store) -> MlflowClient:
    """Import mlflow (seconds) and return a client; one process at a time makes a missing SQLite file."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    from mlflow import MlflowClient

    with store.creation_lock():
        if not store.exists:
            _create(store.database)
        return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def _create(database: Path | None) -> None:
    """Make a SQLite file beside its place and move it there: one killed meanwhile leaves no half schema."""
    from mlflow import MlflowClient

    assert database is not None
    building = database.with_name(f".{database.name}.new")
    for leftover in building.parent.glob(f"{building.name}*"):
        leftover.unlink()
    uri = f"sqlite:///{building}"
    MlflowClient(tracking_uri=uri, registry_uri=uri)
    building.replace(database)


class Delivery:
    """Writes the events of one sweep; `client` is any `MlflowClient`."""

    def __init__(self, client: MlflowClient, store: Store, sweep: str, outbox_name: str) -> None:
        self.client = client
        self.store = store
        # On a shared server two people may each have a sweep of that name; in our own file they cannot.
        self.marks = {"bdtune.sweep": sweep}
        if not store.own:
            self.marks["bdtune.outbox"] = outbox_name
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, str] | None = None  # run id by trial id, the parent's under ""

    def deliver(self, entry: Entry) -> None:
        """Write one event; raises what MLflow raises."""
        handler = {"sweep": self._sweep, "trial": self._trial, "end": self._end}[entry.event]
        handler(entry.body)

    # ---------------------------------------------------------------------------------------------- events

    def _sweep(self, body: Mapping[str, Any]) -> None:
        run = self._parent(body)
        self._log(run, body, params=body["params"], tags={**body["tags"], "bdtune.status": "running"})
        self.client.update_run(run, status="RUNNING")
        self._artifacts(run, body)

    def _trial(self, body: Mapping[str, Any]) -> None:
        trial = TrialResult.from_json(body["trial"])
        parent = self._parent(body)
        run = self._known(body).get(trial.id)
        stored = self.client.get_run(run) if run else None
        if run is None:
            tags = {"mlflow.parentRunId": parent, "bdtune.trial": trial.id, **self._common(body)}
            started = round((trial.started or body["time"] / 1000) * 1000)
            run = self._create(body, trial.id, body["name"], started, tags)
        self._clear(stored, trial)
        params = values.params_of(trial.params)
        params = values.missing(params, stored.data.params) if stored else params
        self._log(
            run, body, params=params, tags=values.trial_tags(trial), metrics=values.trial_metrics(trial)
        )
        self._dataset(run, trial)
        self._artifacts(run, body)
        self.client.set_terminated(run, values.TRIAL_STATUS[trial.status], end_time=body["time"])

    def _end(self, body: Mapping[str, Any]) -> None:
        run = self._parent(body)
        metrics = [(values.name(key), value, 0) for key, value in body["metrics"].items()]
        note = {"mlflow.note.content": body["note"]} if body["note"] else {}
        tags = {**body["tags"], **note, "bdtune.status": body["status"]}
        self._log(run, body, params={}, tags=tags, metrics=metrics)
        self._artifacts(run, body)
        self.client.set_terminated(run, values.SWEEP_STATUS[body["status"]], end_time=body["time"])

    # ------------------------------------------------------------------------------------------------ runs

    def _experiment(self, study: str) -> str:
        if study not in self._experiments:
            found = self.client.get_experiment_by_name(study)
            self._experiments[study] = found.experiment_id if found else self._new_experiment(study)
        return self._experiments[study]

    def _new_experiment(self, study: str) -> str:
        location = self.store.artifact_location(study)
        return self.client.create_experiment(study, artifact_location=location, tags=values.EXPERIMENT_TAGS)

    def _known(self, body: Mapping[str, Any]) -> dict[str, str]:
        """Return the runs that the store has of this sweep, asked for once."""
        if self._runs is None:
            query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in self.marks.items())
            self._runs = {}
            token = None
            while True:
                page = self.client.search_runs(
                    [self._experiment(body["study"])], query, max_results=PAGE, page_token=token
                )
                self._runs.update({run.data.tags.get("bdtune.trial", ""): run.info.run_id for run in page})
                token = page.token
                if not token:
                    break
        return self._runs

    def _parent(self, body: Mapping[str, Any]) -> str:
        known = self._known(body)
        if "" not in known:
            tags = {"bdtune.role": "sweep", **self._common(body)}
            self._create(body, "", body["sweep"], body["time"], tags)
        return known[""]

    def _create(
        self, body: Mapping[str, Any], subject: str, run_name: str, started: int, tags: dict[str, str]
    ) -> str:
        experiment = self._experiment(body["study"])
        run = self.client.create_run(experiment, start_time=started, tags=tags, run_name=run_name)
        self._known(body)[subject] = run.info.run_id
        return run.info.run_id

    def _common(self, body: Mapping[str, Any]) -> dict[str, str]:
        return {**body["common"], **self.marks}

    # --------------------------------------------------------------------------------------------- content

    def _log(
        self,
        run: str,
        body: Mapping[str, Any],
        *,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        metrics: list[values.Metric] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            run,
            # the event's own time, so that telling it again stores nothing twice
            metrics=[Metric(key, value, body["time"], step) for key, value, step in metrics or []],
            params=[Param(key, value) for key, value in params.items()],
            tags=[RunTag(key, values.cut(value, values.TAG_LENGTH)) for key, value in tags.items()],
        )

    def _clear(self, stored: Run | None, trial: TrialResult) -> None:
        """Take off a repeated trial's tags that were true of its first attempt only."""
        tags = values.trial_tags(trial)
        for tag in values.OPTIONAL_TAGS:
            if stored and tag in stored.data.tags and tag not in tags:
                self.client.delete_tag(stored.info.run_id, tag)

    def _dataset(self, run: str, trial: TrialResult) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if trial.data is None:
            return
        source = json.dumps({"recipe": trial.data.digest})
        digest = trial.data.digest[: values.DIGEST_LENGTH]
        dataset = Dataset(name=trial.data.name, digest=digest, source_type="bdtune", source=source)
        tag = InputTag("mlflow.data.context", trial.data.context)
        self.client.log_inputs(run, datasets=[DatasetInput(dataset=dataset, tags=[tag])])

    def _artifacts(self, run: str, body: Mapping[str, Any]) -> None:
        for path, folder in body["artifacts"]:
            file = self.store.run_dir / path  # an absolute path stays what it is
            if file.is_file():
                self.client.log_artifact(run, str(file), folder or None)
            else:
                log.warning("not in MLflow, the file is gone: %s", Path(path))

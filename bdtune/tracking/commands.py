"""What `bdtune sync`, `bdtune ui` and `bdtune doctor` do about MLflow."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.errors import UserError
from bdtune.tracking import browser
from bdtune.tracking.deliver import Delivery, connect
from bdtune.tracking.experiment import VIEW
from bdtune.tracking.mlflow_log import TrackingStatus
from bdtune.tracking.runs import FOLDER
from bdtune.tracking.store import TrackingStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


MOST_PAGES = 10
"""Sweeps whose pages are named one by one."""


@dataclass(frozen=True)
class SyncResult:
    """What a sync did for one sweep."""

    sweep: str
    delivered: int
    status: TrackingStatus


def _deliveries(store: TrackingStore) -> Iterator[Delivery]:
    for folder in sorted((store.run_dir / "sweeps").glob(f"*/{FOLDER}")):
        yield Delivery(store, folder.parent.name)


def sync(run_dir: Path, tracking_uri: str | None = None, *, ask: bool = True) -> list[SyncResult]:
    """Deliver what MLflow lacks of every sweep, and close the parent runs of sweeps whose driver is gone.

    A sweep that is running delivers its own runs. The status of each sweep holds its error. With `ask`,
    MLflow is asked what it holds; otherwise `delivered.json` is believed.
    """
    return [_sync(delivery, ask) for delivery in _deliveries(TrackingStore.of(run_dir, tracking_uri))]


def _sync(delivery: Delivery, ask: bool) -> SyncResult:
    delivered, error = 0, None
    if not delivery.claim():
        return SyncResult(delivery.sweep, 0, _status(delivery, "the sweep is running"))
    try:
        delivery.close_left_open()
        delivered = delivery.round(ask=ask)
    except Exception as problem:  # one sweep's trouble must not keep the others waiting
        error = str(problem).strip().partition("\n")[0]
    finally:
        delivery.release()
    return SyncResult(delivery.sweep, delivered, _status(delivery, error))


def _status(delivery: Delivery, error: str | None) -> TrackingStatus:
    return TrackingStatus(delivery.store.key, len(delivery.pending()), error)


def server_command(store: TrackingStore, port: int) -> list[str]:
    """Return the command line of a small MLflow server on 127.0.0.1: one worker, no job processes."""
    location = (store.run_dir / "artifacts").as_uri()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri]
    command += ["--default-artifact-root", location, "--no-serve-artifacts"]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def server_environment() -> dict[str, str]:
    """Return this process's environment with what keeps an MLflow server small and quiet."""
    small = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return {**os.environ, **small}


def page_address(port: int, experiment: str | None = None) -> str:
    """Return the address of an experiment's runs in the prepared view; without one, of all experiments.

    Its last part asks for training runs instead of language-model traces.
    """
    page = f"/{experiment}/runs?viewStateShareKey={VIEW}&" if experiment else "?"
    return f"http://127.0.0.1:{port}/#/experiments{page}workflowType=machine_learning"


def experiments(store: TrackingStore) -> list[tuple[str, str]]:
    """Return name and id of each sweep's experiment, the sweep that was run last first."""
    found = {experiment.name: experiment.experiment_id for experiment in connect(store).search_experiments()}
    folders = [delivery.folder for delivery in _deliveries(store) if delivery.sweep in found]
    folders.sort(key=lambda folder: (folder / FOLDER).stat().st_mtime, reverse=True)
    return [(folder.name, found[folder.name]) for folder in folders]


def ui(run_dir: Path, port: int = 5000, tracking_uri: str | None = None) -> None:
    """Deliver what is pending, then become `mlflow server` on 127.0.0.1; does not return.

    Prints the address of each sweep's runs, and opens that of the last sweep where there is a screen. Raises
    `UserError` where there is nothing to show, or when the store is a server that has its own page.
    """
    store = TrackingStore.of(run_dir, tracking_uri)
    if store.uri.startswith(("http://", "https://")):
        raise UserError(f"MLflow runs at {store.key}; open that address")
    sync(run_dir, tracking_uri, ask=False)
    if not store.exists:
        raise UserError(f"no MLflow store at {store.database} yet; run a sweep first, or give its --out")
    pages = {name: page_address(port, experiment) for name, experiment in experiments(store)[:MOST_PAGES]}
    for name, page in pages.items():
        print(f"{name}: {page}", file=sys.stderr)
    home = page_address(port)
    print(f"all sweeps: {home} (Ctrl-C stops the server)", file=sys.stderr, flush=True)
    if browser.has_screen():
        browser.open_later(next(iter(pages.values()), home), port)
    # exec: the server is this process, so Ctrl-C and signals reach it and nothing is left behind
    os.execve(sys.executable, server_command(store, port), server_environment())  # noqa: S606


def doctor_lines(run_dir: Path, tracking_uri: str | None = None) -> list[tuple[bool, str]]:
    """Return `bdtune doctor`'s lines about MLflow, each with whether all is well; does not import mlflow."""
    store = TrackingStore.of(run_dir, tracking_uri)
    if store.database is not None:
        size = f"{store.database.stat().st_size / 1e6:.1f} MB" if store.exists else "made by the first sweep"
        lines = [(True, f"{store.database} ({size})")]
    else:
        trouble = store.unreachable()
        lines = [(trouble is None, trouble or f"{store.key} (answers)")]
    for delivery in _deliveries(store):
        if waiting := len(delivery.pending()):
            line = f"sweep {delivery.sweep}: {waiting} runs wait; `bdtune sync` delivers them"
            lines.append((False, line))
    return lines

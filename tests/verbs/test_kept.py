from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from bdtune.config.load import load_sweep
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.reading.resident import InProcess
from bdtune.tracking.mlflow_log import Tracker
from bdtune.trials.ledger import Ledger
from bdtune.verbs.kept import kept_files

TRIAL = [
    "dataset=tiny",
    "attack=badnets",
    "attack.rate=0.2",
    "model=linear",
    "defense=toy",
    "numerics.device=cpu",
]

INTO = Path("nowhere")
"""A store in a folder copies nothing."""


@pytest.fixture
def trial(tmp_path, monkeypatch):
    """Return a ledger's entry of a trial that was computed."""
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    monkeypatch.setenv("BDTUNE_COMMIT", "test")
    spec = load_sweep(None, [*TRIAL, "keep=[model,verdicts]"])
    executor = Executor(Store(tmp_path / "store"), InProcess(None, "auto"))
    ledger = Ledger("s", executor.resolver, "cpu")
    entry = ledger.add(spec.trial)
    assert kept_files(entry, ledger.resolver, spec.keep, INTO) == []
    for _ in executor.walk(entry.graph.goals):
        pass
    return spec, ledger, entry


def test_models_and_verdicts_are_files_when_asked_for(trial):
    spec, ledger, entry = trial
    found = kept_files(entry, ledger.resolver, spec.keep, INTO)
    [weights] = [path for path, folder in found if folder == "model" and path.suffix == ".safetensors"]
    assert load_file(weights)
    evidence = spec.trial.defense.evidence
    assert {folder for _, folder in found} == {"model", *(f"verdicts/{name}" for name in evidence)}
    assert {folder for _, folder in kept_files(entry, ledger.resolver, ["model"], INTO)} == {"model"}
    assert kept_files(entry, ledger.resolver, [], INTO) == []


def test_files_that_are_asked_for_later_are_delivered_later(trial, tmp_path, monkeypatch):
    spec, ledger, entry = trial
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)
    tracker, result = Tracker(tmp_path, "s"), ledger.result(entry)
    assert tracker.finished(result)
    assert not tracker.finished(result)
    files = kept_files(entry, ledger.resolver, spec.keep, INTO)
    assert tracker.finished(result, files)
    assert not tracker.finished(result, files)
    run = tracker.runs.read(entry.id)
    assert {folder for _, folder in run.artifacts} == {folder for _, folder in files}

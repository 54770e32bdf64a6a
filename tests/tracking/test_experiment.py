"""What an experiment's page in MLflow says of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bdtune.config.load import load_sweep
from bdtune.tracking import deliver
from bdtune.tracking.experiment import MOST_COLUMNS, VIEW_TAG, tags_of, view
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.store import TrackingStore

SPACE = """
name: small
description: Which threshold works.
trial: {dataset: tiny, attack: badnets, defense: toy, model: linear, holdout: 0.2}
grid: {defense.beta: [0.5, 0.9], seed: [0, 1]}
select: select_acc
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    (tmp_path / "small.yaml").write_text(SPACE)
    return load_sweep(tmp_path / "small.yaml")


def test_tags_say_what_the_sweep_is_about(spec):
    tags = tags_of(spec, spec.axis_paths(), 5)
    assert tags["mlflow.note.content"].startswith("Which threshold works.")
    assert "`defense.beta`, `seed`" in tags["mlflow.note.content"]
    assert (tags["bdtune.dataset"], tags["bdtune.attack"], tags["bdtune.defense"]) == (
        "tiny",
        "badnets",
        "toy",
    )
    assert tags["mlflow.experiment.primaryMetric.name"] == "select_acc"
    assert tags["mlflow.experiment.primaryMetric.greaterIsBetter"] == "true"
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_the_view_has_what_varies_and_the_headline_metrics_best_first(spec):
    found = json.loads(tags_of(spec, spec.axis_paths(), 5)[VIEW_TAG])
    assert (found["createdAt"], bool(found["name"])) == (5, True)
    state = json.loads(found["state"])
    columns = state["selectedColumns"]
    assert columns[0] == "tags.`bdtune.best`"
    assert columns[-3:-1] == ["params.`defense.beta`", "params.`seed`"]
    assert {"metrics.`acc`", "metrics.`asr`", "metrics.`der`", "metrics.`select_acc`"} < set(columns)
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`select_acc`", False)


def test_a_view_of_many_axes_stays_within_mlflows_limit():
    text = view([f"defense.{'long' * 20}{n}" for n in range(100)], "acc", "max", 1)
    assert len(text) < 5000
    assert json.loads(json.loads(text)["state"])["selectedColumns"][-2:]
    assert text.count("params.") == 2 * MOST_COLUMNS


def test_the_experiment_gets_its_tags_also_when_it_is_there_already(run_dir, make_trial, spec):
    for axes in (["defense.beta"], ["defense.beta", "seed"]):
        tracker = Tracker(run_dir, "small", axes=axes)
        tracker.describe(spec)
        tracker.start()
        tracker.finished(make_trial(len(axes)))
        assert tracker.close().waiting == 0
        experiment = deliver.connect(TrackingStore.of(run_dir)).get_experiment_by_name("small")
        assert experiment.tags["bdtune.defense"] == "toy"
        assert all(f"`{axis}`" in experiment.tags["mlflow.note.content"] for axis in axes)
        assert all(f"params.`{axis}`" in experiment.tags[VIEW_TAG] for axis in axes)

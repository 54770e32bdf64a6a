"""A metric that is one file outside the package, followed from the YAML to the table, the JSON and MLflow."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from bdtune.cluster.sweep import Options
from bdtune.config.load import load_sweep
from bdtune.errors import ConfigError
from bdtune.plugins.metric import METRICS
from bdtune.plugins.table import Table
from bdtune.tracking.commands import sync
from bdtune.tracking.mlflow_log import Tracker
from bdtune.training.evaluate import Evaluate
from bdtune.verbs import run, show, sweep_report
from bdtune.verbs import sweep as verb

METRIC = '''
"""The accuracy of the worst class."""

import numpy as np

from bdtune.plugins.metric import Metric


def lowest(predicted, labels, goals):
    assert (goals < 0).all()
    return min(np.mean(predicted[labels == label] == label) for label in np.unique(labels))


WORST_CLASS = Metric("worst_class", "accuracy of the worst class", lowest, "clean")
'''
SPACE = """
name: added
trial:
  dataset: tiny
  defense: toy
  model: linear
  holdout: 0.2
  numerics: {device: cpu, precision: fp32}
  evaluation: {metrics: [worst_class, select_errors]}
select: RULE
"""
SELECT = """
from bdtune.plugins.metric import Metric

SELECT_ERRORS = Metric(
    "select_errors", "errors on what is held out", lambda got, labels, goals: (got != labels).mean(),
    "select", role="honest", mode="min",
)
"""


@pytest.fixture
def added(tmp_path, monkeypatch) -> Path:
    """A folder with the two metrics."""
    folder = tmp_path / "mine" / "metrics"
    folder.mkdir(parents=True)
    (folder / "worst_class.py").write_text(METRIC)
    (folder / "select_errors.py").write_text(SELECT)
    tests = Path(__file__).parents[1] / "plugins"
    monkeypatch.setenv("BDTUNE_PLUGINS", f"{tests}:{folder.parent}")
    monkeypatch.delenv("BDTUNE_DATA", raising=False)
    monkeypatch.setenv("BDTUNE_COMMIT", "test")
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)
    return folder


def space(tmp_path: Path, rule: str, old: str = "", new: str = "") -> str:
    (tmp_path / "s.yaml").write_text(SPACE.replace(old, new, 1).replace("RULE", rule))
    return str(tmp_path / "s.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "mode", "oracle"), [("oracle_worst_class", "max", True), ("select_errors", "min", False)]
)
def test_a_metric_from_outside_reaches_the_table_the_json_and_mlflow(added, run_dir, rule, mode, oracle):
    file = space(run_dir, rule)
    run.run(file, [], run_dir, quiet=True)
    swept = verb.sweep(file, [], run_dir, Options(), quiet=True)
    value = swept.result.to_json()
    assert value["select"] == {"metric": rule, "mode": mode, "over": "each"}
    assert bool(value["oracle"]) == oracle
    metrics = next(trial["metrics"] for trial in value["trials"] if trial["id"] == value["best"])
    assert metrics["worst_class"] == 1.0
    table = sweep_report.table_of(swept)
    assert {"worst_class", "select_errors"} <= {column.name for column in table.columns}
    assert f"{mode} {rule.replace('oracle_', 'oracle ')} = " in " ".join(table.notes)
    sync(run_dir)
    client = mlflow.MlflowClient(f"sqlite:///{run_dir}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert any(each.data.metrics.get("worst_class") == 1.0 for each in runs)
    assert any(each.data.tags.get("bdtune.select") == f"{mode} {rule}" for each in runs)


def test_only_an_evaluation_that_measures_it_has_it_in_its_key(added):
    plain = {
        "stage": "training.evaluate",
        "version": Evaluate.version,
        "knobs": {"metrics": [], "robust": "none"},
    }
    assert Evaluate().identity() == plain
    (one,) = Evaluate(metrics=("worst_class",)).identity()["knobs"]["metrics"]
    assert (one["name"], one["version"]) == ("worst_class", 1)
    (added / "worst_class.py").write_text(METRIC + "\n# a remark\n")
    assert anew().identity() == one, "remarks are no code"
    (added / "worst_class.py").write_text(METRIC.replace("min(", "max("))
    assert anew().identity()["code_digest"] != one["code_digest"]


def anew():
    """Return the metric as another process reads it."""
    return Table("metrics", METRICS.own.values()).find("worst_class")


@pytest.mark.parametrize(
    ("rule", "old", "new", "path", "hint"),
    [
        ("select_acc", "worst_class", "wurst_class", "evaluation.metrics[0]", "Did you mean 'worst_class'"),
        ("select_acc", "worst_class", "acc", "evaluation.metrics[0]", "always measured"),
        ("oracle_wurst_class", "", "", "select.metric", "Did you mean 'oracle_worst_class'"),
        ("worst_class", "", "", "select.metric", "oracle_worst_class"),
        ("oracle_worst_class", "worst_class, ", "", "select.metric", "evaluation.metrics: [worst_class]"),
        ("select_errors", "holdout: 0.2", "holdout: 0", "select.metric", "holdout: 0.1"),
    ],
)
def test_what_is_wrong_with_its_name_is_said(added, tmp_path, rule, old, new, path, hint):
    with pytest.raises(ConfigError) as caught:
        load_sweep(space(tmp_path, rule, old, new))
    (problem,) = caught.value.problems
    assert problem.path == path
    assert hint in str(problem)


@pytest.mark.parametrize(
    "wrong",
    [
        METRIC.replace('"worst_class"', '"other"'),
        "nothing = 1",
        METRIC.replace('"clean"', '"select"'),
        METRIC.replace('"clean"', '"clean", role="honest"'),
    ],
)
def test_a_file_that_defines_no_such_metric_is_the_users_mistake(added, wrong):
    (added / "worst_class.py").write_text(wrong)
    with pytest.raises(ConfigError, match="expected"):
        anew()


def test_they_are_listed(added):
    listed = {entry.name: entry.summary for entry in show.describe_all("metrics")}
    assert next(iter(listed)) == "acc"
    assert listed["worst_class"] == "accuracy of the worst class"

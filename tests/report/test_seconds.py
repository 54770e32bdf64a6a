"""Seconds of stages beside published ones."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from bdtune.config.sweep import Published
from bdtune.report import files
from bdtune.report.seconds import with_seconds
from bdtune.report.table import build
from bdtune.trials.results import StageUse, SweepResult

STAGES = {
    "attack.trigger": StageUse("a", computed=True, seconds=900.0),
    "simclr": StageUse("b", computed=False, seconds=2000.0),
    "features": StageUse("c", computed=True, seconds=172.4),
    "classifier": StageUse("d", computed=True, seconds=30.5),
    "evaluate": StageUse("e", computed=True, seconds=40.0),
    "diagnose": StageUse("f", computed=True, seconds=50.0),
}
PAPER = [
    Published(
        metrics={"seconds/simclr+features": 2172, "seconds/defense": 6013, "seconds/flows": 896}, source="G.2"
    )
]


def result(make_trial) -> SweepResult:
    return SweepResult("timed", (make_trial("one", stages=STAGES),))


def test_a_published_number_of_seconds_has_ours_beside_it(make_trial):
    (trial,) = with_seconds(result(make_trial), PAPER).trials
    found = {name: value for name, value in trial.metrics.items() if name.startswith("seconds/")}
    assert found == {
        "seconds/simclr+features": 2172.4,  # whoever computed them
        "seconds/defense": 2202.9,  # without the attack's, and those that judge
    }
    assert trial.metrics["acc"] == 0.98


def test_nothing_is_added_that_nobody_asks_for(make_trial):
    plain = result(make_trial)
    assert with_seconds(plain, [Published(metrics={"acc": 0.9}, source="T")]) is plain
    failed = SweepResult("timed", (make_trial("one", stages=STAGES, status="failed"),))
    assert not with_seconds(failed, PAPER).trials[0].metrics


def test_table_and_files_show_seconds_without_decimals(make_trial, tmp_path):
    shown = build(result(make_trial), paper=PAPER, notes=["of another machine"])
    cells = dict(zip([column.name for column in shown.columns], shown.rows[0].cells, strict=True))
    assert cells["seconds/simclr+features"] == "2172"
    assert cells["paper seconds/simclr+features"] == "2172"
    assert cells["paper seconds/defense"] == "6013"
    assert cells["acc"] == "0.980"
    assert "seconds/flows" not in cells
    assert shown.notes[-1] == "note: of another machine"
    files.write(tmp_path, result(make_trial), paper=PAPER, notes=["of another machine"], figure=False)
    (row,) = csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text()))
    assert row["seconds/defense"] == "2202.9"
    assert "- note: of another machine" in (tmp_path / "report.md").read_text()
    assert not any("seconds" in name for trial in files.read(tmp_path).trials for name in trial.metrics)


def test_a_spread_is_as_precise_as_its_mean(make_trial):
    slower = {**STAGES, "simclr": StageUse("g", computed=True, seconds=2300.0)}
    one, two = make_trial("one", stages=STAGES), replace(make_trial("two", 1, stages=slower))
    shown = build(SweepResult("timed", (one, two)), paper=PAPER)
    cells = dict(zip([column.name for column in shown.columns], shown.rows[0].cells, strict=True))
    assert cells["seconds/simclr+features"] == "2322±212"

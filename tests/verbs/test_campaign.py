"""What a campaign's plan says before anything is computed."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from bdtune.cli import app
from bdtune.errors import UserError
from bdtune.verbs import campaign_plan as verb

TRIAL = """
dataset: digits
attack: badnets
clean: 0.1
model: {name: resnet18, width: 4}
"""
TWO = """
sweeps:
  - name: tuned
    trial: {%s, defense: {name: fine_tuning, train: {epochs: 3}}}
    grid: {defense.tune.lr: [0.01, 0.1]}
  - name: distilled
    trial: {%s, defense: {name: nad, train: {epochs: 3}}}
""" % ((", ".join(TRIAL.split("\n")[1:-1]),) * 2)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(TWO)
    return str(path)


def test_what_sweeps_share_is_counted_once(file, tmp_path):
    made = verb.plan(file, [], tmp_path)
    tuned, distilled = made.sweeps
    assert (tuned.trials, distilled.trials, made.whole.trials, made.whole.baselines) == (2, 1, 3, 1)
    assert made.whole.stages["supervised"].unique == 1  # one undefended model for both defenses
    assert tuned.added_s == pytest.approx(tuned.alone_s)
    assert 0 < distilled.added_s < distilled.alone_s
    assert distilled.added_stages < distilled.stages
    assert made.whole.seconds_shared == pytest.approx(tuned.added_s + distilled.added_s)
    assert not (tmp_path / "store").exists()


def test_what_does_not_fit_the_budget_is_named(file, tmp_path):
    whole = verb.plan(file, [], tmp_path)
    hours = whole.sweeps[0].added_s / 3600
    made = verb.plan(file, [f"budget={hours * 1.001}"], tmp_path)
    assert [(sweep.trials, sweep.left_out) for sweep in made.sweeps] == [(2, 0), (0, 1)]
    assert len(made.left_out.trials) == 1
    assert "nad" in next(iter(made.left_out.trials.values()))
    other = verb.plan(file, [f"budget={whole.sweeps[1].alone_s * 1.001 / 3600}", "first=distilled"], tmp_path)
    assert (other.sweeps[0].name, other.sweeps[0].trials) == ("distilled", 1)


def test_the_table_says_what_sharing_saves(file, tmp_path):
    made = verb.plan(file, [], tmp_path)
    table = verb.plan_table(made)
    assert table.title == "campaign c: 2 sweeps, 3 trials and 1 baseline"
    assert any("as sweeps of their own" in note for note in table.notes)


def test_a_campaign_is_no_sweep(file):
    result = CliRunner().invoke(app, ["sweep", file])
    assert isinstance(result.exception, UserError)
    assert f"bdtune campaign {file}" in str(result.exception)


def test_plan_takes_both(file, tmp_path):
    result = CliRunner().invoke(app, ["plan", file, "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0
    assert '"campaign": "c"' in result.stdout

"""What a sweep leaves behind says all that used what no defender has; its trials are made up here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bdtune.cluster.sweep import Options, Outcome
from bdtune.config.expand import with_values
from bdtune.errors import UserError
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.runs import SWEEP, Runs
from bdtune.trials.results import OracleRead, SweepResult, TrialResult
from bdtune.verbs import sweep as verb
from bdtune.verbs import sweep_report, tables
from bdtune.verbs.pictures import Gallery

SPACE = """
name: hidden
trial:
  dataset: tiny
  attack: {name: badnets, rate: 0.2}
  defense: toy
  model: linear
  holdout: 0.2
  numerics: {device: cpu, precision: fp32}
search: {sampler: tpe, trials: 4, metric: oracle_der, space: {defense.beta: {uniform: [0, 1]}}}
scheduler: asha
select: select_acc
"""
READS = [{"reader": "search", "read": "oracle_der"}, {"reader": "scheduler", "read": "oracle_der"}]


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """Run a sweep of a file without a cluster and without MLflow; returns it, and where it was written."""
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    monkeypatch.delenv("BDTUNE_DATA", raising=False)
    monkeypatch.setenv("BDTUNE_COMMIT", "test")
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)

    def run(text, changes):
        def made_up(spec, folder, ledger, executor, **_):
            for number, values in enumerate(changes):
                ledger.add(with_values(spec.trial, values))
                entry = list(ledger.entries.values())[-1]
                metrics = {"acc": 0.9, "asr": 0.1, "select_acc": 0.5 + number / 10, "der": 0.9}
                results.append(replace(ledger.result(entry, "done"), metrics=metrics))
            return Outcome(results, False, 0)

        results = []
        monkeypatch.setattr(verb, "run_sweep", made_up)
        (tmp_path / "s.yaml").write_text(text)
        done = verb.sweep(str(tmp_path / "s.yaml"), [], tmp_path / "runs", Options(), quiet=True)
        return done, tmp_path / "runs" / "sweeps" / done.spec.name

    return run


def test_an_honest_selection_of_what_an_oracle_searched_and_stopped_is_no_honest_sweep(swept):
    done, folder = swept(SPACE, [{"defense.beta": 0.1}, {"defense.beta": 0.2}])
    told = "search by oracle_der, scheduler by oracle_der"
    assert done.result.to_json()["oracle"] == READS
    assert json.loads((folder / "sweep.json").read_text())["oracle"] == READS
    assert told in (folder / "report.md").read_text()
    assert told in "\n".join(sweep_report.table_of(done).notes)
    assert told.replace(",", ";") in (folder / "report.csv").read_text()
    assert Runs(folder).read(SWEEP).tags["bdtune.oracle"] == told.replace(",", ";")
    again = sweep_report.report("hidden", folder.parent.parent)
    assert again.result.to_json()["oracle"] == READS
    assert again.result.best == done.result.trials[-1].id


def test_a_rule_over_the_attacks_is_read_and_kept(swept):
    attacks = [{"attack": {"name": name, "rate": 0.2}} for name in ("badnets", "blend")]
    text = SPACE.replace("search:", "# search:").replace("scheduler:", "# scheduler:")
    changes = [{**attack, "defense.beta": beta} for attack in attacks for beta in (0.1, 0.2)]
    text = text.replace("select: select_acc", "select: {metric: select_acc, over: worst}")
    done, folder = swept(text, changes)
    result = done.result
    assert (result.over, len(result.by_group), result.oracle) == ("worst", 2, ())
    assert result.best == done.latest[1].id
    assert result.chosen == {done.latest[1].id, done.latest[3].id}
    assert "worst" in (folder / "sweep.yaml").read_text()
    placed = {path.name for path in folder.glob("best-*.png")}
    assert placed == {"best-badnets-attack.png", "best-blend-attack.png"}


@pytest.mark.slow
def test_only_the_best_trials_pictures_are_drawn(swept, monkeypatch):
    """A default sweep drew 20 figures, for 35 s, of which two were looked at."""
    drawn = []
    monkeypatch.setattr(
        Gallery, "placed", lambda self, entry, folder, name: drawn.append((entry.id, name)) or []
    )
    done, folder = swept(SPACE, [{"defense.beta": beta / 10} for beta in range(5)])
    assert drawn == [(done.result.best, "best")]
    assert not (folder / "pictures").exists()


def test_a_sweep_without_a_best_setting_shows_its_attacks(swept):
    attacks = [{"attack": {"name": name, "rate": 0.2}} for name in ("badnets", "blend")]
    text = SPACE.replace("search:", "# search:").replace("scheduler:", "# scheduler:")
    _, folder = swept(text.replace("select: select_acc", "select: oracle_noise_acc"), attacks)
    assert {path.name for path in folder.glob("*.png")} == {
        "report.png", "case-badnets-attack.png", "case-blend-attack.png",
    }  # fmt: skip


def test_the_end_of_a_sweep_names_what_it_wrote_and_the_next_command(swept, tmp_path):
    done, folder = swept(SPACE, [{"defense.beta": 0.1}])
    files, tracking, after = done.ending(None)
    assert files.startswith(
        f"written to {folder}: sweep.json, report.md, report.csv, report.png, best-attack"
    )
    assert all((folder / name).exists() for name in files.partition(": ")[2].split(", "))
    assert tracking.startswith("MLflow")
    assert after == "next: bdtune ui, or bdtune report hidden --sort asr --top 10"
    away = tmp_path / "my runs"
    assert f"bdtune ui --out '{away}'" in done.ending(away)[-1]
    failed = (replace(done.result.trials[0], status="failed"),)
    assert "--retry-failed" in replace(done, latest=failed).ending(None)[-1]
    assert "the same command goes on" in replace(done, interrupted=True).ending(None)[-1]


def test_a_report_sorted_by_an_unknown_name_writes_nothing(swept):
    text = SPACE.replace("search:", "# search:").replace("scheduler:", "# scheduler:")
    _, folder = swept(text, [{"defense.beta": 0.1}])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match="--sort: expected a metric or a setting"):
        sweep_report.report("hidden", folder.parent.parent, sort="ac")
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_single_trial_says_what_was_set_by_hand():
    read = OracleRead("defense.oracle_target", "0")
    trial = TrialResult("a", "done", {"defense": "gssd"}, {"acc": 0.9}, oracle=(read,))
    said = tables.trial_table(SweepResult("run", (trial,), "a")).notes
    assert "oracle: defense.oracle_target=0, which no defender knows" in said
    honest = SweepResult("run", (replace(trial, oracle=()),), "a")
    assert "oracle" not in " ".join(tables.trial_table(honest).notes)

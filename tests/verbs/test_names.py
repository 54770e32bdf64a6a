"""Two sweeps never share a folder, and a sweep's folder has all that it was ever asked for."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest
import typer
import yaml

from bdtune.cluster.sweep import Options, Outcome, planned_trials
from bdtune.config.load import load_sweep
from bdtune.errors import UserError
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.runs import SWEEP, Runs
from bdtune.trials.sweep_folder import claim, find_place
from bdtune.verbs import sweep as verb
from bdtune.verbs import sweep_report

pytestmark = pytest.mark.slow

SPACE = """
name: toy
trial:
  dataset: tiny
  attack: {name: badnets, rate: 0.2}
  defense: toy
  model: linear
  numerics: {device: cpu, precision: fp32}
vary: {defense.beta: [0.5, 0.9]}
seeds: [0, 1]
"""
SEARCH = (
    SPACE.partition("vary")[0]
    + "search: {sampler: random, trials: 2, space: {defense.beta: {uniform: [0, 1]}}}"
)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a sweep whose results are made up, without a cluster and without MLflow."""
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    monkeypatch.delenv("BDTUNE_DATA", raising=False)
    monkeypatch.setenv("BDTUNE_COMMIT", "test")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)
    monkeypatch.setattr(verb.Gallery, "_try", lambda *_: None)

    def run(*words, text=SPACE, status="done", only=None):
        def made_up(spec, folder, ledger, executor, *, watcher, **_):
            ledger.extend(planned_trials(spec, 50))
            results = []
            for entry in list(ledger.entries.values())[:only]:
                numbers = {"acc": 0.9, "asr": 0.1 * entry.spec.seed, "der": 0.9}
                results.append(replace(ledger.result(entry, status), metrics=numbers, error=None))
                watcher.trial_done(results[-1])
            return Outcome(results, only is not None, len(results))

        monkeypatch.setattr(verb, "run_sweep", made_up)
        (tmp_path / "toy.yaml").write_text(text)
        done = verb.sweep("toy.yaml", words, tmp_path, Options(), quiet=True)
        return done, capsys.readouterr().err

    return run


def told(folder):
    """Return the trials of a folder's report: their beta and seed by their status."""
    trials = json.loads((folder / "sweep.json").read_text())["trials"]
    found = {}
    for trial in trials:
        if not trial["is_baseline"]:
            params = trial["params"]
            found.setdefault(trial["status"], set()).add((params["defense.beta"], params["seed"]))
    return found


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BOTH = {(0.5, 0), (0.5, 1), (0.9, 0), (0.9, 1)}


def test_other_settings_under_a_taken_name_are_another_sweep_and_overwrite_nothing(run, tmp_path):
    run()
    before = files_of(tmp_path / "sweeps" / "toy")
    other, said = run("attack.rate=0.1")
    assert other.spec.name == other.result.sweep == "toy-2"
    assert files_of(tmp_path / "sweeps" / "toy") == before
    assert said == "'toy' was run with other settings (attack.rate=0.2, here 0.1): this is sweep 'toy-2'\n"
    assert Runs(tmp_path / "sweeps" / "toy-2").read(SWEEP).name == "toy-2"
    third, _ = run("holdout=0.2")
    assert third.spec.name == "toy-3"


def test_the_same_command_finds_its_sweep_again(run, tmp_path):
    run()
    run("attack.rate=0.1", only=1)
    assert run("attack.rate=0.1")[0].spec.name == "toy-2"
    assert run()[0].spec.name == "toy"
    assert sorted(path.name for path in (tmp_path / "sweeps").glob("[!.]*")) == ["toy", "toy-2"]
    assert told(tmp_path / "sweeps" / "toy-2") == {"done": BOTH}


def test_seeds_and_values_of_an_axis_extend_a_sweep(run, tmp_path):
    run()
    done, said = run("seed=2", "defense.beta=0.1,0.5")
    assert (done.spec.name, said) == ("toy", "")
    assert len(done.latest) == 3  # two and their baseline
    assert told(tmp_path / "sweeps" / "toy") == {"done": BOTH | {(0.1, 2), (0.5, 2)}}
    assert {row.split(",")[0] for row in (tmp_path / "sweeps/toy/report.csv").read_text().splitlines()}
    again = sweep_report.report("toy", tmp_path)
    assert len(again.result.trials) == len(done.result.trials)
    assert told(tmp_path / "sweeps" / "toy") == {"done": BOTH | {(0.1, 2), (0.5, 2)}}


def test_what_failed_in_an_earlier_run_is_still_told_and_is_no_failure_of_this_one(run, tmp_path):
    assert run(status="failed")[0].exit_code == 3
    done, _ = run("seed=2")
    assert done.exit_code == 0
    assert told(tmp_path / "sweeps" / "toy") == {"failed": BOTH, "done": {(0.5, 2), (0.9, 2)}}
    sweep_report.report("toy", tmp_path)
    assert told(tmp_path / "sweeps" / "toy")["failed"] == BOTH


def test_an_interrupted_run_tells_what_is_still_to_come(run, tmp_path):
    run(only=2)  # a baseline and a trial
    found = told(tmp_path / "sweeps" / "toy")
    assert len(found["done"]) == 1
    assert found["done"] | found["pending"] == BOTH


def test_a_search_is_extended_by_more_trials_and_keeps_the_earlier_ones(run, tmp_path):
    first, _ = run(text=SEARCH)
    more, _ = run("search.trials=4", text=SEARCH)
    assert more.spec.name == "toy"
    assert {trial.id for trial in first.result.trials} < {trial.id for trial in more.result.trials}
    assert run("search.seed=1", text=SEARCH)[0].spec.name == "toy-2"


def test_a_sweep_that_could_not_start_leaves_its_name_free(run, tmp_path, monkeypatch):
    def impossible(*_, **__):
        raise UserError("no GPU")

    (tmp_path / "toy.yaml").write_text(SPACE)
    monkeypatch.setattr(verb, "run_sweep", impossible)
    with pytest.raises(UserError, match="no GPU"):
        verb.sweep("toy.yaml", ["holdout=0.1"], tmp_path, Options(), quiet=True)
    assert [path.name for path in (tmp_path / "sweeps").glob("[!.]*")] == []
    done, _ = run()
    before = told(tmp_path / "sweeps" / "toy")
    monkeypatch.setattr(verb, "run_sweep", impossible)
    with pytest.raises(UserError, match="no GPU"):
        verb.sweep("toy.yaml", ["seed=8"], tmp_path, Options(), quiet=True)
    assert done.spec.name == "toy"
    assert told(tmp_path / "sweeps" / "toy") == before
    assert Runs(tmp_path / "sweeps" / "toy").read(SWEEP).status == "FAILED"


def test_a_given_name_that_is_taken_is_refused_and_nothing_is_written(run, tmp_path):
    run("name=mine")
    before = files_of(tmp_path)
    with pytest.raises(
        UserError, match=r"name: .*'mine', which was run with attack.rate=0.2, here 0.1.*name=mine-2"
    ):
        run("name=mine", "attack.rate=0.1")
    assert files_of(tmp_path) == before
    assert run("name=mine", "seed=5")[0].spec.name == "mine"


@pytest.mark.parametrize("agrees", [True, False])
def test_on_a_terminal_a_given_name_that_is_taken_is_asked_about(run, tmp_path, monkeypatch, agrees):
    run("name=mine")
    asked = []
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(typer, "confirm", lambda text, **_: asked.append(text) or agrees)
    if agrees:
        assert run("name=mine", "attack.rate=0.1")[0].spec.name == "mine-2"
        assert run("name=mine", "attack.rate=0.1")[0].spec.name == "mine-2"
    else:
        with pytest.raises(UserError, match="mine"):
            run("name=mine", "attack.rate=0.1")
    assert len(asked) == 1
    assert (tmp_path / "sweeps" / "mine-2").exists() == agrees


def test_a_plan_names_the_sweep_that_it_would_be_and_writes_nothing(run, tmp_path, capsys):
    run()
    before = files_of(tmp_path)
    spec, _ = verb.plan("toy.yaml", ["attack.rate=0.1"], tmp_path)
    assert spec.name == "toy-2"
    assert "this is sweep 'toy-2'" in capsys.readouterr().err
    assert verb.plan("toy.yaml", ["seed=9"], tmp_path)[0].name == "toy"
    assert files_of(tmp_path) == before


def test_a_report_of_a_file_is_that_of_its_own_sweep(run, tmp_path):
    run("attack.rate=0.1")
    run()
    assert sweep_report.report("toy.yaml", tmp_path).result.sweep == "toy-2"
    assert sweep_report.report("toy", tmp_path).result.sweep == "toy"


def test_a_folder_of_an_earlier_version_is_known_by_its_settings_and_keeps_them(run, tmp_path):
    done, _ = run()
    folder = tmp_path / "sweeps" / "toy"
    first = yaml.safe_load((folder / "sweep.yaml").read_text())
    (folder / "identity.json").unlink()
    [asked] = (folder / "asked").glob("*")
    asked.unlink()
    assert sweep_report.report("toy", tmp_path).result.trials == done.result.trials
    assert run("attack.rate=0.1")[0].spec.name == "toy-2"
    assert run("seed=2")[0].spec.name == "toy"
    noted = [yaml.safe_load(file.read_text()) for file in (folder / "asked").glob("*")]
    assert len(noted) == 2
    assert first in noted
    assert told(folder) == {"done": BOTH | {(0.5, 2), (0.9, 2)}}


def test_a_run_whose_settings_cannot_be_read_any_more_keeps_its_last_results(run, tmp_path, caplog):
    run()
    folder = tmp_path / "sweeps" / "toy"
    [asked] = (folder / "asked").glob("*")
    asked.write_text(asked.read_text().replace("name: toy\n    ", "name: gone\n    "))
    assert "gone" in asked.read_text()
    run("seed=2")
    assert told(folder) == {"done": BOTH | {(0.5, 2), (0.9, 2)}}
    assert "gone" in caplog.text


def test_the_longest_name_takes_a_number(run, tmp_path):
    run(f"name={'a' * 100}")
    spec = load_sweep("toy.yaml", [f"name={'a' * 100}", "attack.rate=0.1"])
    name = find_place(tmp_path, spec).name
    assert len(name) <= 100
    assert load_sweep("toy.yaml", [f"name={name}"]).name == name


def test_sweeps_that_start_at_once_under_one_name_get_a_folder_each(run, tmp_path):
    (tmp_path / "toy.yaml").write_text(SPACE)
    rates = [0.1, 0.1, 0.2, 0.3]
    specs = [load_sweep("toy.yaml", [f"attack.rate={rate}"]) for rate in rates]
    start = Barrier(len(rates))

    def start_one(spec):
        start.wait()
        return claim(tmp_path, spec).name

    with ThreadPoolExecutor(len(rates)) as pool:
        names = list(pool.map(start_one, specs))
    assert names[0] == names[1]
    assert set(names) == {"toy", "toy-2", "toy-3"}

"""bdtune from Python: what the command line does, as functions, and what one does with a trial afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import bdtune
from bdtune.cluster.sweep import Outcome, planned_trials
from bdtune.config.load import load_trial
from bdtune.errors import UserError
from bdtune.tracking.mlflow_log import Tracker
from bdtune.verbs import sweep as verb
from tests.verbs.computing import SPACE, plugins

ROOT = Path(__file__).parents[1]
SMALL = {"epochs": 1, "batch_size": 16, "augment": "none"}
TRIAL = {"dataset": "tiny", "attack": "badnets", "attack.rate": 0.2, "model": "linear", "defense": "toy"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    plugins(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def in_process(monkeypatch):
    """Let a sweep compute in this process, without a cluster and without MLflow."""

    def computed(spec, folder, ledger, executor, *, watcher, **_):
        ledger.extend(planned_trials(spec, 50))
        for entry in ledger.entries.values():
            executor.made_for = f"{spec.name}/{entry.id}"
            for _ in executor.walk(entry.graph.goals):
                pass
        return Outcome([ledger.result(entry) for entry in ledger.entries.values()], False, 0)

    monkeypatch.setattr(Tracker, "_poke", lambda self: None)
    monkeypatch.setattr(verb.Gallery, "_try", lambda *_: None)
    monkeypatch.setattr(verb, "run_sweep", computed)


def images_of(split):
    return torch.from_numpy(split.images.copy()).permute(0, 3, 1, 2) / 255


def test_a_sweep_is_planned_run_and_reported(in_process, tmp_path):
    (tmp_path / "toy.yaml").write_text(SPACE)
    settings = {"defense.beta": [0.5, 0.8], "seed": 0}
    planned = bdtune.plan("toy.yaml", settings, out="runs")
    assert not (tmp_path / "runs").exists()
    assert planned.plan.trials == 4
    assert planned.to_pandas().loc["toy_tail", "unique"] == 4
    assert "toy: 4 trials and 1 baseline" in repr(planned)
    result = bdtune.sweep("toy.yaml", settings, out="runs", quiet=True)
    assert len(result.trials) == 5
    assert result.best.params["defense.tail.quality"] == 1
    assert result.best_settings[""] == (result.best,)
    frame = result.to_pandas()
    assert list(frame.index) == [trial.id for trial in result.trials]
    assert frame.loc[result.best.id, "acc"] == result.best.metrics["acc"]
    assert set(frame["defense.beta"].dropna()) == {0.5, 0.8}
    assert repr(result).startswith("sweep toy")
    assert result._repr_html_().startswith("<pre>sweep toy")
    again = bdtune.report("toy", out="runs")
    assert again.to_pandas().equals(frame)
    assert again.best.id == bdtune.trial(result.best.id[:8], out="runs").id
    with pytest.raises(UserError, match="Did you mean 'toy'"):
        bdtune.report("toi", out="runs")
    with pytest.raises(UserError, match="Did you mean 'beta'"):
        bdtune.sweep("toy.yaml", {"defense.betta": 1}, out="runs")


def test_the_report_is_a_function_whether_or_not_its_package_was_imported(tmp_path):
    for first in ("", "import bdtune.report.table\n", "from bdtune.report import files\n"):
        code = f"{first}import bdtune\nprint(callable(bdtune.report), bdtune.report.__name__)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.stdout.startswith("True")


def test_settings_mean_what_they_say():
    from bdtune.api import words

    given = {
        "attack": {"name": "badnets", "rate": 0.1},
        "defense.lr": 1e-05,
        "defense.milestones": [[0.5, 0.75]],
        "seed": range(2),
        "x": np.array([1.5, 2.0]),
        "clean": "10 per class",
        "data_seed": None,
        "y": [True],
        "data_root": Path("/a, b"),
    }
    assert words(given) == [
        'attack={"name": "badnets", "rate": 0.1}',
        "defense.lr=1e-05",
        "defense.milestones=choice([0.5, 0.75])",
        "seed=choice(0, 1)",
        "x=choice(1.5, 2.0)",
        'clean="10 per class"',
        "data_seed=null",
        "y=choice(true)",
        'data_root="/a, b"',
    ]
    trial = load_trial(None, words({**TRIAL, "numerics": {"device": "cpu"}, "data_root": "/a, b: c"}))
    assert str(trial.data_root) == "/a, b: c"
    assert trial.attack.rate == 0.2


def test_a_trial_gives_its_model_its_poisoned_set_and_its_record():
    trial = bdtune.run(
        settings={**TRIAL, "defense.tail.quality": 0.5, "holdout": 0.25}, out="runs", quiet=True
    )
    assert "defense=toy" in repr(trial)
    assert bdtune.trial(trial.id[:6], out="runs").metrics == trial.metrics
    test = bdtune.dataset("tiny").load("test")
    model = trial.model()
    assert not model.training
    assert (model(images_of(test)).argmax(1).numpy() == test.labels).mean() == trial.metrics["acc"]
    train = bdtune.dataset("tiny").load("train")
    data = trial.poisoned_dataset()
    assert len(data) == 29  # a quarter of each observed class is held out
    attack = bdtune.attack("badnets", rate=0.2)
    plan = attack.plan(train.labels, seed=0)
    stamped = attack.apply(train.images, np.arange(40), plan)
    assert (data.images == stamped[data.ids]).all()
    assert (data.labels == plan.labels[data.ids]).all()
    assert (data.true_labels == train.labels[data.ids]).all()
    assert set(data.poison_ids) == set(plan.poison_ids) & set(data.ids)
    image, label = data[3]
    assert (image.dtype, tuple(image.shape), label) == (torch.float32, (3, 8, 8), int(data.labels[3]))
    assert torch.equal((image * 255).round().byte().permute(1, 2, 0), torch.from_numpy(data.images[3].copy()))
    loader = torch.utils.data.DataLoader(trial.poisoned_dataset(lambda image: image * 0), batch_size=5)
    assert next(iter(loader))[0].sum() == 0
    assert list(trial.curves()["classifier"].columns)[:2] == ["epoch", "loss"]


DEFENSES = {
    "none": {"train": SMALL},
    "spectral_signatures": {"train": SMALL, "retrain": SMALL, "fewest": 2, "eps": 0.2},
    "abl": {"isolate": SMALL, "recover": SMALL, "unlearn": {**SMALL}, "p": 0.1},
    "adversarial_training": {"train": {**SMALL, "pgd": {"steps": 1}}, "validation": 0.25},
}


@pytest.mark.parametrize("name", DEFENSES)
def test_verdicts_are_rows_of_the_data_set(name):
    """Against the subsets that the defense's own stages left in the store."""
    defense = {"name": name, **DEFENSES[name]}
    trial = bdtune.run(settings={**TRIAL, "defense": defense, "holdout": 0.25}, out="runs", quiet=True)
    assert trial.status == "done"
    rows, verdicts = trial.poisoned_dataset().ids, trial.verdicts()
    kept, suspected = set(verdicts.kept.tolist()), set(verdicts.suspected.tolist())
    assert not kept & suspected
    assert kept | suspected <= set(rows.tolist())
    assert len(verdicts.relabelled) == 0
    if name == "none":
        assert kept == set(rows.tolist())
    if name == "spectral_signatures":
        own = trial.known.artefact("kept").arrays["ids"]
        assert kept == set(rows[own].tolist())
        assert suspected == set(rows.tolist()) - kept
        assert suspected
    if name == "abl":
        own = trial.known.artefact("isolated").arrays["ids"]
        assert suspected == set(rows[own].tolist())
        assert len(suspected) == 2
    if name == "adversarial_training":
        assert not suspected
        assert kept == set(rows[trial.known.artefact("subset").arrays["ids"]].tolist())
        assert len(kept) < len(rows)  # the others validate
    assert repr(verdicts) == f"Verdicts({len(kept)} kept, 0 relabelled, {len(suspected)} suspected)"


def test_relabelled_rows_come_with_their_new_labels(monkeypatch):
    """By a filter that gives every row of class 0 another label; the stage is GSSD's."""
    from bdtune.trials import verdicts

    trial = bdtune.run(
        settings={**TRIAL, "defense": {"name": "none", "train": SMALL}}, out="runs", quiet=True
    )
    data = trial.poisoned_dataset()
    moved = np.flatnonzero(data.labels == 0)
    trained = np.where(data.labels == 0, 3, data.labels)
    trained[:2] = -1
    monkeypatch.setattr(verdicts, "_trained", lambda *_: trained)
    found = trial.verdicts()
    expected = data.ids[moved[moved >= 2]]
    assert found.relabelled.tolist() == expected.tolist()
    assert (found.new_labels == 3).all()
    assert set(found.suspected) == {0, 1, *expected}
    assert not set(found.kept) & set(found.suspected)


def test_a_notebook_finds_every_name_with_what_it_does():
    for name in bdtune.__all__:
        assert getattr(bdtune, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        bdtune.swep  # noqa: B018


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_the_example_in_readme_runs(tmp_path):
    text = (ROOT / "README.md").read_text()
    [code] = re.findall(r"```python\n(import bdtune\n.*?)```", text, re.DOTALL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ of \d+ poisoned images are suspected", done.stdout)

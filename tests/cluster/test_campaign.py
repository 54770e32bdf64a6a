"""A campaign on a real Ray: shared work once, a report of each sweep, and the same command goes on."""

from __future__ import annotations

import json

import pytest

from bdtune.cluster.sweep import Options
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.runs import Runs
from bdtune.verbs import campaign as verb
from bdtune.verbs import campaign_run, sweep_report

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and files of Ray's own
]

TRIAL = "{dataset: tiny, attack: {name: badnets, rate: 0.2}, defense: toy, model: linear}"
TWO = f"""
name: both
sweeps:
  - {{name: levels, trial: {TRIAL}, grid: {{defense.prefix.level: [0, 1]}}}}
  - {{name: betas, trial: {TRIAL}, grid: {{defense.beta: [0.3, 0.5]}}}}
first: [betas]
"""


@pytest.fixture
def run(bench, monkeypatch):
    """Run the campaign in the bench's folder, without delivering to MLflow."""
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)
    (bench.root / "c.yaml").write_text(TWO)
    return lambda *words: campaign_run.run(
        str(bench.root / "c.yaml"), list(words), bench.root, Options(), quiet=True, wait_s=0.1
    )


def numbers(result):
    return {trial.id: dict(trial.metrics) for trial in result.trials}


def test_it_computes_what_its_sweeps_share_once_and_goes_on(run, bench):
    done = run()
    assert done.exit_code == 0
    assert list(done.sweeps) == ["betas", "levels"]
    assert {trial.status for result in done.sweeps.values() for trial in result.trials} == {"done"}
    assert not bench.twice()
    published = bench.published()
    first = next(note["identity"][0] for note in bench.notes("toy_tail"))
    assert first is not None

    again = run()
    assert bench.published() == published
    assert {name: numbers(each) for name, each in again.sweeps.items()} == {
        name: numbers(each) for name, each in done.sweeps.items()
    }
    alone = sweep_report.report("levels", bench.root)
    assert numbers(alone.result) == numbers(done.sweeps["levels"])
    told = verb.report("both", bench.root)
    assert {name: numbers(each) for name, each in told.sweeps.items()} == {
        name: numbers(each) for name, each in done.sweeps.items()
    }
    written = (bench.root / "sweeps" / "both" / "report.md").read_text()
    assert all(name in written for name in ("both", "levels", "betas"))
    runs = Runs(bench.root / "sweeps" / "both")
    assert len(runs.signatures()) == 3  # the campaign's own, and one of each sweep
    assert json.loads((bench.root / "sweeps" / "levels" / "sweep.json").read_text())["trials"]


def test_what_the_budget_leaves_out_is_pending_in_its_sweep(run, bench):
    none = run("budget=1e-9")
    assert none.exit_code == 0
    assert none.left_out
    statuses = {trial.status for result in none.sweeps.values() for trial in result.trials}
    assert statuses == {"pending"}
    assert not run().left_out

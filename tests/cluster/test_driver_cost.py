"""What the driver does for each trial that ends, counted: the benchmark `driver` has the times."""

from __future__ import annotations

from tests.benchmarks.driver import Bench
from tests.benchmarks.faked import Opens

RUNNING = (8, 80)


def test_files_opened_for_a_trial_do_not_grow_with_the_trials_that_run(tmp_path):
    opens, rows = Opens(), []
    for running in RUNNING:
        (tmp_path / f"{running}").mkdir()
        rows.append(Bench(400, running, tmp_path / f"{running}", opens).measured(20))
    few, many = rows
    assert (few.running, many.running) == RUNNING
    assert few.opens > 0
    assert many.opens < 3 * few.opens, "it once opened each missing claim of all that ran"

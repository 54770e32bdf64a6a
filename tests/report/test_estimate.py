"""How long the rest takes: the plan of what is missing, at what stages like it took."""

from __future__ import annotations

import pytest

from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.reading.resident import InProcess
from bdtune.report.estimate import Estimate
from bdtune.report.live import Running
from bdtune.trials.ledger import Ledger

WORDS = ["dataset=digits", "dataset.train_limit=100", "dataset.test_limit=20", "attack=badnets", "seed=0"]
WORDS += ["defense=gssd", "model.width=4", "defense.simclr.epochs=2", "defense.retrain.epochs=2"]
EACH = {"simclr": 60.0, "supervised": 30.0}


def guess(node):
    return EACH.get(node.name, 0.0)


def sweep(folder, *words):
    """Return the ledger of a sweep and the executor of its stages."""
    executor = Executor(Store(folder), InProcess(None, "auto"))
    ledger = Ledger("s", executor.resolver, "cpu")
    ledger.extend(points(load_sweep(None, [*WORDS, *words])))
    return ledger, executor


def test_shared_work_counts_once_and_slots_divide_it(tmp_path):
    ledger, _ = sweep(tmp_path, "defense.beta_nd=0.5,1,2")
    shared = 60.0 + 4 * 30.0  # three settings of one encoding, and the undefended model
    assert ledger.plan(guess).seconds_shared == pytest.approx(shared)
    assert Estimate(ledger, 1, guess=guess)((), {}, 0.0) == pytest.approx(shared)
    assert Estimate(ledger, 2, guess=guess)((), {}, 0.0) == pytest.approx(shared / 2)
    assert Estimate(ledger, 20, guess=guess)((), {}, 0.0) == pytest.approx(
        90.0
    )  # one trial's stages in a row


def test_what_ended_and_what_runs_is_not_waited_for_again(tmp_path):
    ledger, _ = sweep(tmp_path, "defense.beta_nd=0.5,1")
    estimate = Estimate(ledger, 1, guess=guess)
    baseline, first, _ = ledger.entries
    assert estimate({baseline}, {}, 0.0) == pytest.approx(60.0 + 2 * 30.0)
    by_clock = estimate({baseline}, {first: Running("simclr", since=0.0)}, 45.0)
    assert by_clock == pytest.approx(15.0 + 2 * 30.0)
    late = estimate({baseline}, {first: Running("simclr", since=0.0)}, 600.0)
    assert late == pytest.approx(0.05 * 60.0 + 2 * 30.0)


def test_the_pace_of_what_runs_is_that_of_the_rest(tmp_path):
    """On a machine three times as busy as when costs were recorded."""
    ledger, _ = sweep(tmp_path, "defense.beta_nd=0.5,1")
    estimate = Estimate(ledger, 1, guess=guess)
    baseline, first, _ = ledger.entries
    for _ in range(10):  # it settles within a few looks
        found = estimate({baseline}, {first: Running("simclr", 1, 4, since=0.0)}, 45.0)
    assert found == pytest.approx(3 * 45.0 + 3 * 2 * 30.0, rel=0.01)
    later = estimate({baseline}, {first: Running("simclr", 2, 4, since=0.0)}, 90.0)
    assert later == pytest.approx(2 * 45.0 + 3 * 2 * 30.0, rel=0.01)  # and it does not climb


def test_what_became_shared_while_it_ran_is_counted(tmp_path):
    """Equal verdicts, which only their results show, make one retraining."""
    ledger, executor = sweep(tmp_path, "defense.beta_nd=1e6,2e6,3e6,4e6")  # nothing is ever detected
    before = Estimate(ledger, 1, guess=guess)((), {}, 0.0)
    assert before == pytest.approx(60.0 + 5 * 30.0)
    first = list(ledger.entries.values())[1]
    for node in first.graph.goals:
        executor.compute(node)
    for entry in ledger.entries.values():
        for node in entry.graph.stages.values():
            if node.stage.kind == "derive" and node.name != "diagnose":
                executor.compute(node)
    assert Estimate(ledger, 1, guess=guess)((), {}, 0.0) < 35.0


def test_a_search_counts_the_trials_that_it_has_not_asked_for(tmp_path):
    ledger, _ = sweep(tmp_path)
    estimate = Estimate(ledger, 1, guess=guess, unasked=lambda asked: 10.0 * (5 - asked))
    assert estimate((), {}, 0.0) == pytest.approx(60.0 + 2 * 30.0 + 10.0 * 4)


def test_of_an_unknown_stage_nothing_is_said(tmp_path):
    ledger, _ = sweep(tmp_path)
    assert Estimate(ledger, 1)((), {}, 0.0) is None

from __future__ import annotations

import math

import pytest

from bdtune.tracking import values
from bdtune.trials.results import DataUse, GroupBest, OracleRead, OverallBest, StageUse, SweepResult


def test_parameters_are_flat_exact_and_within_limits():
    params = {"lr": 1e-5, "width": 16, "flag": False, "none": None, "x y{": "v"}
    texts = {"lr": "1e-05", "width": "16", "flag": "false", "none": "none", "x y_": "v"}
    assert values.params_of(params) == texts
    assert values.params_of({"long": "a" * 7000}) == {"long": "a" * 5997 + "..."}


def test_numeric_knobs_that_vary_are_metrics_too_and_flags_are_not():
    params = {"a.b": 0.5, "n": 3, "flag": True, "text": "x", "none": None, "bad": math.inf, "constant": 4}
    axes = ["a.b", "n", "flag", "text", "none", "bad", "of.another.plugin"]
    assert values.knob_metrics(params, axes) == [("knob/a.b", 0.5, 0), ("knob/n", 3.0, 0)]


def test_numbers_that_are_not_finite_become_a_tag(make_trial):
    trial = make_trial(metrics={"acc": math.nan, "x": math.inf, "asr": 0.5})
    names = [name for name, _, _ in values.trial_metrics(trial)]
    assert "asr" in names
    assert not {"acc", "x"} & set(names)
    assert values.trial_tags(trial)["bdtune.not_finite"] == "acc, x"
    assert all(math.isfinite(value) for _, value, _ in values.trial_metrics(trial))


def test_curves_go_by_epoch_and_costs_by_who_paid(make_trial):
    metrics = values.trial_metrics(make_trial(3))
    assert ("supervised/loss", 0.5, 2) in metrics
    assert ("cost/stage_seconds", 5.0, 0) in metrics
    assert ("cost/saved_seconds", 20.0, 0) in metrics
    assert not any(name.endswith("/epoch") for name, _, _ in metrics)


def test_the_training_set_is_counted_as_it_was_poisoned(make_trial):
    counted = make_trial(data=DataUse("digits", "abc", samples=60, poisoned=5, covered=0))
    metrics = values.trial_metrics(counted)
    assert {("data/samples", 60.0, 0), ("data/poisoned", 5.0, 0), ("data/covered", 0.0, 0)} <= set(metrics)
    assert not any(name.startswith("data/") for name, _, _ in values.trial_metrics(make_trial()))


def test_tags_say_what_became_of_each_stage(make_trial):
    tags = values.trial_tags(make_trial(1, error="boom", status="failed", baseline_id="ref0"))
    assert tags["stage.simclr"] == "a" * 16 + " hit"
    assert tags["stage.supervised"] == f"{1:016x} computed"
    assert tags["bdtune.error"] == "boom"
    assert tags["bdtune.baseline"] == "ref0"
    assert tags["bdtune.status"] == "failed"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "beta_nd=1.5 seed=1"),
        ({"is_baseline": True}, "undefended seed=1"),
        ({"params": {}}, "trial001"),
    ],
)
def test_run_names_hold_the_varying_parameters_only(make_trial, changes, name):
    assert values.run_name(make_trial(1, **changes), ["defense.beta_nd", "seed"]) == name


def test_undefended_models_of_different_poisoned_sets_have_names_of_their_own(make_trial):
    params = {"defense.beta_nd": 0.6, "data_seed": 4, "seed": 1}
    axes = ["defense.beta_nd", "data_seed", "seed"]
    found = make_trial(1, params=params, is_baseline=True)
    assert values.run_name(found, axes) == "undefended data_seed=4 seed=1"


def test_undefended_models_are_named_by_their_attack(make_trial):
    params = {"attack": "blend", "attack.rate": 0.05, "defense.beta_nd": 0.6, "seed": 1}
    trial = make_trial(1, params=params, is_baseline=True)
    assert values.run_name(trial, ["defense.beta_nd", "seed"]) == "undefended blend seed=1"
    assert values.run_name(trial, ["attack", "attack.rate", "seed"]) == "undefended blend rate=0.05 seed=1"
    defended = make_trial(1, params=params)
    assert values.run_name(defended, ["attack", "attack.rate", "seed"]) == "attack=blend rate=0.05 seed=1"


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101, 1234])
def test_thinning_keeps_the_ends(length):
    rows = [{"epoch": float(i), "loss": 1.0} for i in range(1, length + 1)]
    kept = values.thinned(rows)
    assert len(kept) == min(length, 100)
    assert kept[:1] == rows[:1]
    assert kept[-1:] == rows[-1:]


def test_rows_without_an_epoch_keep_their_place():
    rows = values.thinned([{"loss": float(i)} for i in range(1000)])
    assert rows[0] == {"epoch": 1.0, "loss": 0.0}
    assert rows[-1] == {"epoch": 1000.0, "loss": 999.0}


def test_the_identity_ignores_what_a_rerun_from_the_store_changes(make_trial):
    first = make_trial(1, metrics={"acc": 1.0, "cost/peak_memory": 3.0})
    again = make_trial(
        1, metrics={"acc": 1.0}, stages={"simclr": StageUse("k", computed=False)}, started=1.0, ended=2.0
    )
    assert values.identity_of(first) == values.identity_of(again)
    assert values.identity_of(first) != values.identity_of(make_trial(1, metrics={"acc": 0.9}))


def by_name(metrics):
    return {name: value for name, value, _ in metrics}


def test_the_parent_sums_up(make_trial):
    trials = (make_trial(0), make_trial(1), make_trial(2, status="failed"))
    metrics = by_name(values.sweep_metrics(SweepResult("s", trials, best="trial001")))
    assert metrics["trials/total"] == 3
    assert metrics["trials/failed"] == 1
    assert metrics["stages/computed"] == 4
    assert metrics["cost/saved_seconds"] == 40.0
    assert metrics["best/asr"] == 0.01


def seeds(make_trial, numbers, **changes):
    """Return trials of one setting, one a seed."""
    own = {"attack": "badnets", "defense.beta": 1, **changes.pop("params", {})}
    return tuple(
        make_trial(
            seed,
            id=f"{own['attack']}{own['defense.beta']}{seed}",
            params={**own, "seed": seed},
            metrics={"acc": acc},
            **changes,
        )
        for seed, acc in enumerate(numbers)
    )


def test_the_best_numbers_are_means_and_spreads_over_seeds(make_trial):
    best, other = seeds(make_trial, [0.5, 0.7]), seeds(make_trial, [0.1], params={"defense.beta": 2})
    failed = make_trial(9, params={**best[0].params, "seed": 9}, status="failed", metrics={})
    result = SweepResult("s", (*best, *other, failed), best=best[0].id)
    metrics = by_name(values.sweep_metrics(result))
    assert metrics["best/acc"] == pytest.approx(0.6)
    assert metrics["best/acc_std"] == pytest.approx(0.2 / math.sqrt(2))
    assert metrics["best/n"] == 2
    assert set(values.best_trials(result)) == {best[0].id, best[1].id, failed.id}
    alone = by_name(values.sweep_metrics(SweepResult("s", other, best=other[0].id)))
    assert (alone["best/acc"], alone["best/n"]) == (0.1, 1)
    assert "best/acc_std" not in alone
    assert "best/n" not in by_name(values.sweep_metrics(SweepResult("s", other)))


def test_with_several_attacks_each_best_setting_has_its_mean(make_trial):
    badnets, blend = seeds(make_trial, [0.5, 0.7]), seeds(make_trial, [0.2, 0.4], params={"attack": "blend"})
    by_group = (GroupBest("badnets", {}, badnets[0].id), GroupBest("blend", {}, blend[0].id))
    result = SweepResult("s", (*badnets, *blend), by_group=by_group)
    metrics = by_name(values.sweep_metrics(result))
    assert (metrics["best/badnets/acc"], metrics["best/blend/acc"]) == (
        pytest.approx(0.6),
        pytest.approx(0.3),
    )
    assert set(values.best_trials(result)) == {trial.id for trial in result.trials}


BY_HAND = OracleRead("defense.oracle_target", "0")


def test_what_reads_test_data_is_a_tag_of_the_sweep_and_of_the_trials_whose_knob_it_is(make_trial):
    reads = (OracleRead("scheduler", "oracle_der"), BY_HAND)
    result = SweepResult("s", metric="select_acc", oracle=reads)
    tags = values.selection_tags(result)
    assert tags["bdtune.oracle"] == "scheduler by oracle_der; defense.oracle_target=0"
    assert values.selection_tags(SweepResult("s", metric="select_acc"))["bdtune.oracle"] == "none"
    assert values.trial_tags(make_trial(oracle=(BY_HAND,)))["bdtune.oracle"] == "defense.oracle_target=0"
    assert "bdtune.oracle" not in values.trial_tags(make_trial())


def test_the_parent_has_the_best_of_each_attack(make_trial):
    trials = (make_trial(0), make_trial(1))
    by_group = (GroupBest("badnets", {}, "trial000"), GroupBest("blend", {}, "trial001"))
    best = OverallBest("worst", ("trial000", "trial001"), 0.9, 0.1, 0.8, "blend", 2, (), 0)
    result = SweepResult("s", trials, by_group=by_group, overall=(best,))
    metrics = by_name(values.sweep_metrics(result))
    assert (metrics["best/badnets/asr"], metrics["best/blend/asr"]) == (0.0, 0.01)
    assert (metrics["best_in_worst/mean"], metrics["best_in_worst/worst"]) == (0.9, 0.8)
    tags = values.selection_tags(result)
    assert tags["bdtune.best"] == "badnets: trial000; blend: trial001"
    assert tags["bdtune.select_over"] == "each"

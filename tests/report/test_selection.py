from __future__ import annotations

import json
import random
import statistics
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdtune.metrics import is_oracle, metric_of
from bdtune.plugins.metric import METRICS
from bdtune.report.groups import grouped
from bdtune.report.selection import cases, overall, ranking, rule_title, selected
from bdtune.trials.results import OracleRead, SweepResult, TrialResult


def choose(trials, rule, mode="max"):
    """Return the id of the one best setting's first finished trial."""
    return selected("s", trials, rule, mode).best


@pytest.mark.parametrize(
    ("rule", "mode", "best"),
    [("oracle_der", "max", "good0"), ("oracle_acc", "max", "bad0"), ("oracle_asr", "min", "good0")],
)
def test_the_best_setting_by_its_mean(sweep, rule, mode, best):
    trials = list(sweep.trials)
    for seed in range(5):
        random.Random(seed).shuffle(trials)
        assert choose(trials, rule, mode) == best


def test_a_setting_with_a_failed_seed_ranks_last_whatever_its_numbers(sweep):
    ranked = ranking(grouped(sweep.trials), "oracle_der")
    assert [group.trials[0].id for group in ranked] == ["good0", "bad0", "half0"]


def not_taken(trial):
    return replace(trial, metrics={**trial.metrics, "undefended/asr": 0.2})


def test_an_attack_that_did_not_take_is_never_the_best_of_an_oracle(make_trial):
    lucky = not_taken(make_trial("lucky", asr=0.0, knobs={"model.width": 4}))
    real = make_trial("real", asr=0.1, knobs={"model.width": 16})
    assert choose([lucky, real], "oracle_der") == "real"
    assert choose([lucky], "oracle_der") is None


def test_an_honest_rule_does_not_look_whether_the_attack_took(make_trial):
    """That is seen on the test set, as the undefended model's ASR."""
    trials = [
        make_trial("better", metrics={"select_acc": 0.9, "undefended/asr": 0.2}, knobs={"k": 1}),
        make_trial("worse", metrics={"select_acc": 0.8, "undefended/asr": 1.0}, knobs={"k": 2}),
    ]
    assert choose(trials, "select_acc") == "better"
    everything_took = [replace(t, metrics={**t.metrics, "undefended/asr": 1.0}) for t in trials]
    assert choose(everything_took, "select_acc") == "better"


def test_ties_go_to_the_first_in_the_order_of_parameters(make_trial):
    trials = [make_trial(f"t{value}", knobs={"k": value}) for value in (3.0, 1.0, 2.0)]
    assert choose(trials, "oracle_der") == "t1.0"
    assert choose(trials, "oracle_asr", "min") == "t1.0"


def test_nothing_to_choose_from(make_trial, make_baseline):
    assert choose([], "oracle_der") is None
    assert choose([make_baseline("r")], "oracle_acc") is None
    assert choose([make_trial("a", status="failed")], "oracle_der") is None
    assert choose([make_trial("a")], "select_acc") is None


def test_rules_say_what_they_read():
    assert (metric_of("oracle_der"), is_oracle("oracle_der"), rule_title("oracle_der")) == (
        "der",
        True,
        "oracle der",
    )
    assert (metric_of("select_acc"), is_oracle("select_acc"), rule_title("select_acc")) == (
        "select_acc",
        False,
        "select_acc",
    )
    assert rule_title("asr") == "oracle asr"  # the report data under any other name


def over_attacks(make_trial, values, *, seeds=(0,), rule="der"):
    """Return trials of settings k on attacks: values[attack][k] is the metric, None: the trial failed."""
    return [
        make_trial(
            f"{attack}{k}.{seed}", seed, knobs={"attack": attack, "defense.k": k},
            **({"status": "failed"} if value is None else {"metrics": {rule: value, "undefended/asr": 1.0}}),
        )
        for attack, row in values.items() for k, value in row.items() for seed in seeds
    ]  # fmt: skip


TWO = {"badnets": {1: 1.0, 2: 0.9, 3: 0.4}, "blend": {1: 0.5, 2: 0.7, 3: 0.8}}


def test_each_attack_has_its_own_best(make_trial):
    result = selected("s", over_attacks(make_trial, TWO, seeds=(0, 1)), "oracle_der")
    assert result.best is None  # no defender chooses the attack
    assert [(group.name, group.best) for group in result.by_group] == [
        ("badnets", "badnets1.0"),
        ("blend", "blend3.0"),
    ]
    assert result.by_group[0].params == {"dataset": "digits", "attack": "badnets"}
    assert result.chosen == {"badnets1.0", "blend3.0"}


def test_the_best_in_mean_and_in_the_worst_case(make_trial):
    values = {**TWO, "sig": {1: 1.0, 2: 0.8, 3: 0.9}}
    trials = over_attacks(make_trial, values)
    in_mean, in_worst = selected("s", trials, "oracle_der").overall
    assert in_mean.trials == ("badnets1.0", "blend1.0", "sig1.0")
    assert (in_mean.mean, in_mean.worst, in_mean.worst_on) == (pytest.approx(2.5 / 3), 0.5, "blend")
    assert in_mean.std == pytest.approx(statistics.stdev([1.0, 0.5, 1.0]))
    assert in_worst.trials == ("badnets2.0", "blend2.0", "sig2.0")
    assert (in_worst.worst, in_worst.groups, in_worst.left_out) == (0.7, 3, 0)
    for over, first in (("mean", "badnets1.0"), ("worst", "badnets2.0")):
        result = selected("s", trials, "oracle_der", over=over)
        assert result.best == first
        assert result.choices == {name: first.replace("badnets", name) for name in values}


def test_less_may_be_better_and_then_the_worst_is_the_highest(make_trial):
    trials = over_attacks(make_trial, TWO, rule="asr")
    in_mean, in_worst = selected("s", trials, "oracle_asr", "min").overall
    assert (in_mean.trials[0], in_mean.worst, in_mean.worst_on) == ("badnets3.0", 0.8, "blend")
    assert in_worst.trials[0] == "badnets3.0"


def test_a_setting_without_a_result_on_every_attack_is_left_out(make_trial):
    trials = over_attacks(make_trial, {**TWO, "blend": {1: None, 2: 0.7}})
    in_mean, in_worst = selected("s", trials, "oracle_der").overall
    assert (in_mean.trials, in_mean.left_out) == (("badnets2.0", "blend2.0"), 2)
    assert in_worst.trials == in_mean.trials
    nothing = selected("s", over_attacks(make_trial, {"badnets": {1: 1.0}, "blend": {2: 1.0}}), "oracle_der")
    assert [(best.trials, best.mean, best.left_out) for best in nothing.overall] == [((), None, 2)] * 2
    assert selected("s", nothing.trials, "oracle_der", over="mean").chosen == frozenset()


def test_a_failed_seed_anywhere_ranks_a_setting_after_the_complete_ones(make_trial):
    trials = over_attacks(make_trial, TWO, seeds=(0, 1))
    trials = [replace(t, status="failed", metrics={}) if t.id == "blend1.1" else t for t in trials]
    assert selected("s", trials, "oracle_der").overall[0].trials == ("badnets2.0", "blend2.0")


def test_an_attack_that_took_nowhere_is_no_case_of_an_oracle(make_trial):
    trials = [not_taken(t) if "blend" in t.id else t for t in over_attacks(make_trial, TWO)]
    result = selected("s", trials, "oracle_der", over="mean")
    assert (result.overall[0].trials, result.overall[0].skipped) == (("badnets1.0",), ("blend",))
    assert (result.overall[0].std, result.choices) == (None, {"badnets": "badnets1.0"})


def test_ties_over_attacks_go_to_the_first_in_the_order_of_parameters(make_trial):
    same = {3: 0.5, 1: 0.5, 2: 0.5}
    in_mean, in_worst = selected(
        "s", over_attacks(make_trial, {"blend": same, "badnets": same}), "oracle_der"
    ).overall
    assert in_mean.trials == in_worst.trials == ("badnets1.0", "blend1.0")


def test_what_the_attacker_and_the_data_set_ask_for_is_no_part_of_a_setting(
    make_trial,
):
    def trial(name, **knobs):
        return make_trial(name, knobs={path.replace("__", "."): value for path, value in knobs.items()})

    rates = [trial(f"{rate}{k}", attack__rate=rate, defense__k=k) for rate in (0.05, 0.1) for k in (1, 2)]
    assert [case.name for case in cases(grouped(rates))] == ["rate=0.05", "rate=0.1"]
    clean = [trial("a", attack="none"), trial("b", attack="blend")]
    assert [case.name for case in cases(grouped(clean))] == ["blend", "no attack"]
    sets = [
        trial(f"{dataset}{k}", dataset=dataset, defense__k=k, defense__augment=augment)
        for dataset, augment in (("cifar10", "crop_flip"), ("gtsrb", "crop"))
        for k in (1, 2)
    ]
    assert [best.left_out for best in overall(grouped(sets), "oracle_der", "max")] == [0, 0]
    assert selected("s", sets, "oracle_der", over="worst").best == "cifar101"


def test_one_data_set_and_attack_has_one_best_whatever_is_asked(sweep):
    for over in ("each", "mean", "worst"):
        result = selected("s", sweep.trials, "oracle_der", over=over)
        assert (result.best, result.overall) == ("good0", ())
        assert result.chosen == {"good0"}


def test_a_selection_survives_json(make_trial):
    oracle = (OracleRead("select", "oracle_der"), OracleRead("defense.oracle_target", "0"))
    trials = over_attacks(make_trial, TWO)
    for over in ("each", "mean", "worst"):
        result = selected("s", trials, "oracle_der", over=over, oracle=oracle)
        assert SweepResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    old = {key: result.to_json()[key] for key in ("sweep", "trials", "best", "summary")}
    read = SweepResult.from_json(
        {**old, "best": "blend1.0", "select": {"metric": "oracle_acc", "mode": "max"}}
    )
    assert (read.chosen, read.oracle) == ({"blend1.0"}, (OracleRead("select", "oracle_acc"),))


def with_seeds(make_trial, values, metric="select_der"):
    """Return trials of settings k whose metric has these values, one for each seed."""
    return [
        make_trial(f"k{k}.{seed}", seed, knobs={"defense.k": k}, metrics={metric: value, "der": 0.9})
        for k, row in values.items()
        for seed, value in enumerate(row)
    ]


def test_a_stable_rule_prefers_the_setting_whose_seeds_agree(make_trial):
    trials = with_seeds(make_trial, {1: (1.0, 0.8), 2: (0.86, 0.86), 3: (0.7, 0.7)})
    assert choose(trials, "select_der") == "k1.0"
    assert choose(trials, "select_der_stable") == "k2.0"
    assert [group.params["defense.k"] for group in ranking(grouped(trials), "select_der_stable")] == [2, 1, 3]


def test_a_stable_rule_adds_the_spread_where_less_is_better(make_trial):
    trials = with_seeds(make_trial, {1: (0.0, 0.2), 2: (0.15, 0.15)}, "asr")
    assert choose(trials, "oracle_asr", "min") == "k1.0"
    assert choose(trials, "oracle_asr_stable", "min") == "k2.0"


def test_a_setting_with_one_seed_has_no_spread_to_be_ranked_by(make_trial):
    trials = with_seeds(make_trial, {1: (1.0,), 2: (0.5, 0.5)})
    assert choose(trials, "select_der_stable") == "k2.0"
    assert choose(trials[:1], "select_der_stable") is None
    assert rule_title("select_der_stable") == "select_der_stable"
    assert rule_title("oracle_der_stable") == "oracle der_stable"


RULES = [metric.rule for metric in METRICS.own.values() if metric.role == "honest"]
HONEST = sorted(metric_of(rule) for rule in RULES)


@pytest.mark.parametrize("rule", [*RULES, *(f"{rule}_stable" for rule in RULES)])
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_no_honest_rule_sees_report_data(rule, data):
    """Whatever test images, the truth and other rules' numbers say, it chooses the same."""

    def trial(k, seed, **others):
        own = {metric_of(rule): (k * 7 + seed * 3) % 11 / 11}
        params = {"dataset": "digits", "attack": "badnets", "defense": "toy", "defense.k": k, "seed": seed}
        return TrialResult(f"k{k}.{seed}", "done", params, {**own, **others}, asr_band=0.9)

    plain = [trial(k, seed) for k in range(4) for seed in (0, 1)]
    unit = st.floats(0, 1)
    hidden = ["acc", "asr", "ra", "der", "undefended/acc", "undefended/asr", "toy/recall", *HONEST]
    hidden.remove(metric_of(rule))
    filled = [
        trial(k, seed, **{name: data.draw(unit) for name in hidden}) for k in range(4) for seed in (0, 1)
    ]
    assert choose(filled, rule) == choose(plain, rule) is not None
    assert [g.params for g in ranking(grouped(filled), rule)] == [
        g.params for g in ranking(grouped(plain), rule)
    ]

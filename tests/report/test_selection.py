from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bdtune.report.groups import grouped
from bdtune.report.selection import choose, is_oracle, metric_of, ranking, rule_title


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


def test_an_attack_that_did_not_take_is_never_the_best(make_trial):
    lucky = make_trial("lucky", asr=0.0, knobs={"attack.rate": 0.001})
    lucky = replace(lucky, metrics={**lucky.metrics, "undefended/asr": 0.2})
    honest = make_trial("honest", asr=0.1)
    assert choose([lucky, honest], "oracle_der") == "honest"
    assert choose([lucky], "oracle_der") is None


def test_ties_go_to_the_first_in_the_order_of_parameters(make_trial):
    trials = [make_trial(f"t{value}", knobs={"k": value}) for value in (3.0, 1.0, 2.0)]
    assert choose(trials, "oracle_der") == "t1.0"
    assert choose(trials, "oracle_asr", "min") == "t1.0"


def test_nothing_to_choose_from(make_trial, make_reference):
    assert choose([], "oracle_der") is None
    assert choose([make_reference("r")], "oracle_acc") is None
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

"""What each rule chooses for each defense on each data set and attack, and how far that is from the best."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bdtune.report.groups import grouped
from bdtune.report.rules import gap_note, gaps, picks, unopened
from tests.report.compared import baseline, trial


def found(trials):
    """Return setting and gap by defense, case and rule."""
    return {
        (pick.contest.defense, pick.contest.case, pick.rule): (pick.setting, pick.gap)
        for pick in picks(grouped(trials))
    }


def two(defense="toy", attack="badnets", seeds=(0,), **changes):
    """Return two settings: k=1 removes the backdoor, k=2 keeps it, which only select_der sees."""
    return [
        trial(defense, attack, seed, der, knobs={"k": k}, select_acc=acc, select_der=est, **changes)
        for k, der, acc, est in ((1, 0.95, 0.8, 0.7), (2, 0.5, 0.9, 0.5))
        for seed in seeds
    ]


def test_each_rule_is_applied_to_each_defense_on_each_attack():
    trials = [*two(), *two(attack="blend"), *two("other"), baseline()]
    told = found(trials)
    assert told == {
        (defense, case, rule): ("k=1" if rule != "select_acc" else "k=2", pytest.approx(gap))
        for defense, case in (("toy", "badnets"), ("toy", "blend"), ("other", "badnets"))
        for rule, gap in (("oracle_der", 0.0), ("select_acc", 0.45), ("select_der", 0.0))
    }


def test_a_rule_without_values_chooses_nothing_and_one_that_none_has_is_left_out():
    some = [*two(), *(replace(t, metrics={"der": t.metrics["der"]}) for t in two("blind"))]
    told = found(some)
    assert told["blind", "digits badnets", "select_acc"] == ("", None)
    assert told["blind", "digits badnets", "oracle_der"] == ("k=1", pytest.approx(0.0))
    assert {rule for _, _, rule in told} == {"oracle_der", "select_acc", "select_der"}


def test_rules_of_the_spread_come_with_the_second_seed():
    rules = {rule for _, _, rule in found(two(seeds=(0, 1)))}
    assert rules == {
        "oracle_der", "select_acc", "select_acc_stable", "select_der", "select_der_stable",
    }  # fmt: skip
    assert not [rule for _, _, rule in found(two()) if rule.endswith("_stable")]


def test_there_is_no_gap_where_the_attack_did_not_take():
    told = found(two(undefended_asr=0.2))
    assert told["toy", "digits badnets", "oracle_der"] == ("", None)
    assert told["toy", "digits badnets", "select_acc"] == ("k=2", None)
    assert gaps(picks(grouped(two(undefended_asr=0.2)))) == []


def test_one_setting_is_no_choice():
    single = [trial("single", der=0.7, select_acc=0.5), trial("half", knobs={"k": 1}, select_acc=0.1)]
    failed = trial("half", knobs={"k": 2}, status="failed")
    groups = grouped([*two(), *single, failed, baseline()])
    assert {pick.contest.defense for pick in picks(groups)} == {"toy"}
    assert unopened(groups) == ["half", "single"]


def test_ties_are_counted_and_what_differs_from_the_oracle_is_named():
    trials = [
        trial(der=der, knobs={"k": k, "m": k % 2}, select_acc=0.5)
        for k, der in ((1, 0.6), (2, 0.9), (3, 0.8))
    ]
    oracle, honest = picks(grouped(trials))
    assert (oracle.tied, oracle.setting, oracle.apart) == (1, "k=2 m=0", "the same")
    assert (honest.tied, honest.setting, honest.apart) == (3, "k=1 m=1", "k=1 m=1")
    assert honest.gap == pytest.approx(0.3)
    row = honest.to_json()
    assert json.loads(json.dumps(row)) == row
    assert (row["settings"], row["best_der"], row["trials"]) == (3, 0.9, ["toy-badnets-1-1-0"])


def test_gaps_are_summed_up_over_attacks_and_defenses():
    trials = [*two(), *two("other"), *(replace(t, id=t.id + "x") for t in two(attack="blend"))]
    better = [
        replace(t, metrics={**t.metrics, "der": 0.9}) if t.id == "toy-blend-2-0x" else t for t in trials
    ]
    acc, der = gaps(picks(grouped(better)))
    assert (acc.rule, acc.count, acc.mean, acc.worst) == (
        "select_acc",
        3,
        pytest.approx(0.95 / 3),
        pytest.approx(0.45),
    )
    assert acc.worst_on in ("toy on badnets", "other on badnets")
    assert (der.mean, der.worst) == (0.0, 0.0)
    assert gap_note(grouped(better)) == [
        "gap to oracle_der; mean over 3 data sets, attacks and defenses (largest): "
        "select_acc 0.317 (0.450), select_der 0.000 (0.000)"
    ]
    assert gap_note(grouped(two())) == ["gap to oracle_der: select_acc 0.450, select_der 0.000"]
    assert gap_note(grouped([trial(knobs={"k": k}) for k in (1, 2)])) == []


def test_a_rule_that_was_measured_on_fewer_says_so():
    some = [*two(), *(replace(t, metrics={**t.metrics, "select_der": float("nan")}) for t in two("blind"))]
    (note,) = gap_note(grouped(some))
    assert note.endswith("select_acc 0.450 (0.450), select_der 0.000 (0.000, over 1)")

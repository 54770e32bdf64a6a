"""Defenses in order, those that cannot be compared apart, with what they lack."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bdtune.errors import UserError
from bdtune.report import comparison
from bdtune.report.ranking import PREFERRED, ranking_of
from bdtune.report.selection import selected
from tests.report.compared import baseline, trial


def sweep(*trials, rule="oracle_der", name="s"):
    return selected(name, trials, rule)


def flat(defense, badnets, blend=None, **changes):
    """Return a defense's one setting on two attacks, or on one."""
    found = [trial(defense, "badnets", der=badnets, **changes)]
    return [*found, *([trial(defense, "blend", der=blend, **changes)] if blend is not None else [])]


BASELINES = [baseline("badnets", asr=1.0), baseline("blend", asr=0.9)]


def order(results, **words):
    found = ranking_of(results, **words)
    return [each.defense for each in found.ranked], [each.defense for each in found.others]


def test_the_worst_case_comes_first_then_the_mean():
    trials = [*flat("even", 0.7, 0.7), *flat("peaked", 1.0, 0.6), *flat("lucky", 1.0, 0.7), *BASELINES]
    assert order([sweep(*trials)]) == (["lucky", "even", "peaked"], [])
    assert order([sweep(*trials)], sort="mean") == (["lucky", "peaked", "even"], [])
    lucky = ranking_of([sweep(*trials)]).ranked[0]
    assert (lucky.tuned.worst, lucky.tuned.mean, lucky.tuned.worst_on) == (0.7, pytest.approx(0.85), "blend")


def test_sweeps_of_a_campaign_are_compared_as_one():
    one = sweep(*flat("a", 0.9, 0.8), *BASELINES, name="one")
    two = sweep(*flat("b", 0.95, 0.7), *BASELINES, name="two")
    found = ranking_of([one, two])
    assert ([each.defense for each in found.ranked], found.cases) == (["a", "b"], ("badnets", "blend"))
    assert found.undefended == {"acc": pytest.approx(0.95), "asr": pytest.approx(0.95)}
    assert ranking_of([two, one]).to_json()["defenses"] == found.to_json()["defenses"]
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_a_defense_that_lacks_an_attack_is_listed_with_why():
    trials = [
        *flat("whole", 0.6, 0.6),
        *flat("half", 0.99),
        trial("broken", "badnets", der=0.99), trial("broken", "blend", status="diverged"),
        trial("weak", "badnets", der=0.99), trial("weak", "blend", undefended_asr=0.2, der=0.99),
        trial("blind", "badnets", der=0.99), trial("blind", "blend", der=None),
        trial("late", "badnets", der=0.99), trial("late", "blend", status="pending"),
        *BASELINES,
    ]  # fmt: skip
    found = ranking_of([sweep(*trials)])
    assert [each.defense for each in found.ranked] == ["whole"]
    assert {each.defense: dict(each.lacks) for each in found.others} == {
        "half": {"blend": "no trial"},
        "broken": {"blend": "diverged"},
        "weak": {"blend": "the attack did not take"},
        "blind": {"blend": "no der"},
        "late": {"blend": "not run"},
    }
    assert all(each.oracle.by_case == {"badnets": 0.99} for each in found.others)


def test_where_every_defense_lacks_an_attack_those_that_took_for_some_are_left_out():
    trials = [
        *flat("a", 0.9, 0.8), trial("a", "wanet", undefended_asr=0.2, der=0.1),
        *flat("b", 0.95, undefended_asr=1.0), trial("b", "blend", undefended_asr=0.2, der=1.0),
        trial("b", "wanet", der=0.7),
        trial("c", "badnets", der=0.6), trial("c", "blend", status="failed"),
        *BASELINES,
    ]  # fmt: skip
    found = ranking_of([sweep(*trials)])
    assert (found.cases, found.uneven) == (("badnets",), ("wanet", "blend"))
    assert [(each.defense, dict(each.tuned.by_case)) for each in found.ranked] == [
        ("b", {"badnets": 0.95}),
        ("a", {"badnets": 0.9}),
        ("c", {"badnets": 0.6}),
    ]
    assert not found.others
    notes = comparison.ranking_table("s", found).notes
    assert "left out, as the attack took for some defenses only: wanet, blend" in notes


def test_attacks_are_not_left_out_if_none_would_remain():
    a = [trial("a", "badnets", der=0.9), trial("a", "blend", undefended_asr=0.2, der=0.8)]
    b = [trial("b", "badnets", undefended_asr=0.2, der=0.9), trial("b", "blend", der=0.8)]
    found = ranking_of([sweep(*a, *b, *BASELINES)])
    assert (found.cases, found.uneven, found.ranked) == (("badnets", "blend"), (), ())
    assert [(each.defense, dict(each.lacks)) for each in found.others] == [
        ("a", {"blend": "the attack did not take"}),
        ("b", {"badnets": "the attack did not take"}),
    ]


def test_a_defense_that_was_only_run_on_what_is_left_out_is_still_named():
    trials = [
        trial("a", "badnets", der=0.9), trial("a", "blend", undefended_asr=0.2, der=0.8),
        trial("b", "badnets", der=0.7), trial("b", "blend", status="failed"),
        trial("only", "blend", der=0.9),
        *BASELINES,
    ]  # fmt: skip
    found = ranking_of([sweep(*trials)])
    assert (found.uneven, [each.defense for each in found.ranked]) == (("blend",), ["a", "b"])
    assert [(each.defense, dict(each.lacks)) for each in found.others] == [("only", {"badnets": "no trial"})]
    notes = comparison.ranking_table("s", found).notes
    assert "not ranked, without a result to compare: only (no trial)" in notes


def test_an_attack_that_took_for_none_is_not_compared():
    trials = [*flat("a", 0.9), *flat("b", 0.8)]
    weak = [trial(d, "blend", der=1.0, undefended_asr=0.1) for d in ("a", "b")]
    found = ranking_of([sweep(*trials, *weak, *BASELINES)])
    assert (found.cases, [each.defense for each in found.ranked]) == (("badnets",), ["a", "b"])


def tuned(defense, values, **knobs):
    """Return settings k with their der and what an honest rule says of them."""
    return [trial(defense, der=der, knobs={"k": k, **knobs}, **own) for k, (der, own) in values.items()]


def test_honest_tuning_and_the_oracle_stand_side_by_side():
    fooled = tuned("fooled", {1: (0.99, {"select_der": 0.5}), 2: (0.5, {"select_der": 0.9})})
    steady = tuned("steady", {1: (0.8, {"select_der": 0.9}), 2: (0.7, {"select_der": 0.5})})
    found = ranking_of([sweep(*fooled, *steady, *BASELINES)])
    assert found.rule == "select_der"
    assert [each.defense for each in found.ranked] == ["steady", "fooled"]
    assert [each.tuned.worst for each in found.ranked] == [0.8, 0.5]
    assert [each.oracle.worst for each in found.ranked] == [0.8, 0.99]
    assert order([sweep(*fooled, *steady)], sort="oracle_worst") == (["fooled", "steady"], [])
    assert [each.stability.score for each in found.ranked] == [pytest.approx(0.9), 1.0]
    assert order([sweep(*fooled, *steady)], sort="stability") == (["fooled", "steady"], [])


def test_the_sweeps_own_honest_rule_comes_first_and_the_test_data_choose_none():
    own = {"select_acc": 0.9, "select_clean_der": 0.5}
    other = {"select_acc": 0.5, "select_clean_der": 0.9}
    trials = tuned("toy", {1: (0.5, own), 2: (0.9, other)})
    assert ranking_of([sweep(*trials, rule="select_acc")]).ranked[0].tuned.worst == 0.5
    by_default = ranking_of([sweep(*trials)])
    assert by_default.rule == "select_clean_der" == PREFERRED[0]
    swapped = [replace(t, metrics={**t.metrics, "der": 1.4 - t.metrics["der"], "acc": 0.1}) for t in trials]
    assert ranking_of([sweep(*swapped)]).rule == by_default.rule
    assert (
        ranking_of([sweep(*trials, rule="select_acc"), sweep(rule="select_der")]).rule == "select_clean_der"
    )


def test_without_an_honest_rule_everywhere_the_oracle_chooses():
    measured, blind = tuned("a", {1: (0.9, {"select_der": 1.0})}), tuned("b", {1: (0.8, {})})
    assert ranking_of([sweep(*measured, *blind)]).rule == "oracle_der"
    failed = trial("c", status="failed")
    assert ranking_of([sweep(*measured, failed)]).rule == "select_der"


def test_a_trial_that_two_sweeps_share_counts_once():
    trials = [*flat("a", 0.9, 0.8), *BASELINES]
    one, two = ranking_of([sweep(*trials)]), ranking_of([sweep(*trials), sweep(*trials, name="t")])
    assert one.to_json() == two.to_json()


def test_another_order_is_a_mistake_with_the_nearest_word():
    with pytest.raises(
        UserError, match=r"--sort: expected one of worst, mean, .* got 'wrst'. Did you mean 'worst'"
    ):
        ranking_of([sweep()], "wrst")


def test_a_sweep_without_results_ranks_nothing():
    found = ranking_of([sweep(trial("a", status="pending"), baseline())])
    assert (found.cases, found.ranked, [each.defense for each in found.others]) == ((), (), ["a"])


def test_stability_is_around_what_the_ranking_chooses():
    values = {1: (0.9, {"select_der": 0.9}), 2: (0.5, {"select_der": 0.1}), 3: (0.95, {"select_der": 0.0})}
    honest = ranking_of([sweep(*tuned("toy", values))]).ranked[0]
    assert honest.stability.score == pytest.approx(0.6)  # k=1 was chosen, whose only neighbour is k=2
    oracle = ranking_of([sweep(*tuned("toy", {k: (der, {}) for k, (der, _) in values.items()}))]).ranked[0]
    assert oracle.stability.score == pytest.approx(0.55)  # k=3 was chosen

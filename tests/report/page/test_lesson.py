"""The sentences of a report follow from its numbers."""

from __future__ import annotations

import pytest

from bdtune.report.groups import grouped
from bdtune.report.page.costs import cost_sentence, cost_table, stage_costs
from bdtune.report.page.lesson import lesson
from bdtune.report.page.sensitivity import effects
from bdtune.report.selection import selected
from bdtune.report.table import moved
from bdtune.trials.results import StageUse, TrialResult


def trial(attack, beta, seed, acc, asr, *, status="done", band=0.9, **honest) -> TrialResult:
    params = {"dataset": "digits", "attack": attack, "defense": "toy", "defense.beta": beta, "seed": seed}
    der = (max(0, 1 - asr) - max(0, 0.95 - acc) + 1) / 2
    metrics = {"acc": acc, "asr": asr, "der": der, "undefended/asr": 1.0, "undefended/acc": 0.95, **honest}
    metrics = metrics if status == "done" else {}
    return TrialResult(f"{attack}{beta}{seed}", status, params, metrics, asr_band=band)


def baseline(attack) -> TrialResult:
    params = {"dataset": "digits", "attack": attack, "defense": "none", "seed": 0}
    return TrialResult(
        f"ref{attack}", "done", params, {"acc": 0.95, "asr": 1.0}, is_baseline=True, asr_band=0.9
    )


def said(trials, rule="oracle_der") -> str:
    result = selected("s", trials, rule)
    found = effects(grouped(result.trials), ["der"], "der")
    return "\n".join(lesson(result, found, "der"))


TRIALS = [
    baseline("badnets"),
    *(trial("badnets", 1, seed, 0.94, 0.02) for seed in (0, 1)),
    *(trial("badnets", 2, seed, 0.95, 1.0) for seed in (0, 1)),
    *(trial("badnets", 3, seed, 0.80, 0.0) for seed in (0, 1)),
    *(trial("badnets", 4, seed, 0.95, seed * 0.8) for seed in (0, 1)),
]


def test_it_says_what_is_best_and_what_that_costs():
    text = said(TRIALS)
    assert "Without a defense acc 0.950±0.000 and asr 1.000±0.000." in text
    assert (
        "The best setting by oracle der (it reads test data that no defender has) is beta=1: der 0.985±0.000"
        in text
    )
    assert "accuracy falls by 0.010" in text
    assert "No honest rule was measured" in text


def test_the_only_setting_has_a_name_and_costs_nothing_where_accuracy_is_equal():
    only = [each for name in ("badnets", "blend") for each in (baseline(name), trial(name, 1, 0, 0.95, 0.0))]
    text = said(only)
    assert "One setting for all 2, best in mean and in the worst case: the only one, with oracle der" in text
    assert "; accuracy stays." in text


def test_it_says_where_it_fails():
    text = said(TRIALS)
    assert (
        "2 of 4 settings fail: the backdoor stays (asr above 0.5) in 1, "
        "accuracy falls by more than 0.05 in 1." in text
    )
    assert "Every setting fails with beta=2; beta=3." in text
    assert "Seeds disagree (standard deviation of asr above 0.2) with beta=4" in text
    fine = [t for t in TRIALS if t.is_baseline or t.params["defense.beta"] == 1]
    assert "None of 1 settings fails" in said(fine)


def test_an_attack_that_did_not_take_credits_nothing():
    weak = [trial("blend", beta, 0, 0.95, 0.1, band=2.0) for beta in (1, 2)]
    text = said([*TRIALS, *weak])
    assert "blend: as the attack did not take, no setting can be ranked by oracle der." in text
    assert "2 of 4 settings fail" in text


def test_it_compares_honest_rules_with_the_best_there_is():
    scores = {1: 0.5, 2: 0.9, 3: 0.4}
    trials = [
        baseline("badnets"),
        *(
            trial("badnets", b, 0, 0.94, 0.02 if b != 2 else 1.0, select_acc=s, select_der=1 - s)
            for b, s in scores.items()
        ),
    ]
    text = said(trials)
    assert "select_acc chooses beta=2: der 0.495, 0.490 under the best there is." in text
    assert "select_der chooses beta=3: der 0.985, 0.000 under the best there is." in text
    assert "No honest rule" not in text


def test_one_setting_for_all_attacks_is_named_once():
    both = [t for t in TRIALS if not t.is_baseline] + [
        trial("blend", b, 0, 0.94, 0.1 * b) for b in (1, 2, 3, 4)
    ]
    text = said(both)
    assert (
        "One setting for all 2, best in mean and in the worst case: beta=1, with oracle der 0.965 in mean"
        in text
    )
    assert "0.945 on blend." in text
    assert text.count("One setting for all") == 1
    assert text.count("No honest rule was measured") == 1


def test_it_names_the_setting_that_matters_most_and_what_is_missing():
    trials = [trial("badnets", beta, 0, 0.95, asr) for beta, asr in ((1, 0.0), (2, 0.6))] + [
        trial("badnets", 3, 0, 0, 0, status="failed")
    ]
    assert "Not all trials have a result: 1 failed of 3." in said(trials)
    two = [
        TrialResult(f"{a}{b}", "done", {"attack": "x", "defense.a": a, "defense.b": b}, {"der": a + b / 9})
        for a in (0.1, 0.5)
        for b in (0.1, 0.2)
    ]
    assert "matters most is a: the mean of der changes by 0.400" in said(two)
    assert "b matters least (0.011)" in said(two)


def test_costs_are_by_stage_with_what_sharing_saved():
    def with_stages(ident, computed):
        uses = {"simclr": StageUse("a", computed, 30.0), "retrain": StageUse("b", True, 10.0)}
        return TrialResult(ident, "done", {"attack": "x"}, {}, uses)

    result = selected(
        "s", [with_stages("1", True), with_stages("2", False), with_stages("3", False)], "oracle_der"
    )
    simclr, retrain = stage_costs(result)
    assert (simclr.role, simclr.computed, simclr.shared, simclr.spent, simclr.saved) == (
        "simclr",
        1,
        2,
        30.0,
        60.0,
    )
    assert (retrain.spent, retrain.saved) == (30.0, 0.0)
    assert "sharing saved 1 min 0 s: without it the sweep takes 2.0 times as long" in cost_sentence(
        [simclr, retrain]
    )
    assert cost_table([simclr, retrain]).columns[-1].name == "read"
    stored = selected("s", [with_stages("2", False)], "oracle_der")
    assert "all 30.0 s of it were in the store" in cost_sentence(stage_costs(stored)[:1])
    assert pytest.approx(simclr.spent + simclr.saved) == 90.0


def test_costs_are_by_stage_with_what_moved():
    def with_stages(ident, computed, **moved):
        uses = {
            "simclr": StageUse("a", computed, 30.0, 2_000_000),
            "retrain": StageUse("b", True, 10.0, 3_000, **moved),
        }
        return TrialResult(ident, "done", {"attack": "x"}, {}, uses)

    first, second = with_stages("1", True), with_stages("2", False, read=2_000_000, fetched=2_000_000)
    third = with_stages("3", False, read=2_000_000, served=2_000_000)
    result = selected("s", [first, second, third], "oracle_der")
    table = cost_table(stage_costs(result))
    assert [column.name for column in table.columns[-4:]] == ["written", "read", "fetched", "served"]
    assert [row.cells[-4:] for row in table.rows] == [
        ("2.0 MB", "0.0 kB", "0.0 kB", "0.0 kB"),
        ("9.0 kB", "4.0 MB", "2.0 MB", "2.0 MB"),
    ]
    summary = result.summary()
    assert (summary["bytes_read"], summary["bytes_fetched"], summary["bytes_served"]) == (4e6, 2e6, 2e6)
    assert moved(summary) == [
        "results: 2.0 MB written, 4.0 MB read of other trials; "
        "2.0 MB fetched from the bucket, 2.0 MB from copies on the nodes"
    ]
    assert moved(selected("s", [first], "oracle_der").summary())[0].endswith("0.0 kB read of other trials")

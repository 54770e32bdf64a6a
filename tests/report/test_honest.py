"""What a report says beside the choice of an honest rule."""

from __future__ import annotations

from bdtune.report.groups import grouped
from bdtune.report.honest import honest_notes
from bdtune.report.selection import selected
from bdtune.trials.results import TrialResult


def trial(name: str, k: int, attack: str = "badnets", **metrics: float) -> TrialResult:
    params = {"dataset": "digits", "attack": attack, "defense": "gssd", "defense.k": k, "seed": 0}
    return TrialResult(name, "done", params, metrics)


def notes(*trials: TrialResult, rule: str = "select_acc") -> list[str]:
    return honest_notes(selected("s", trials, rule), grouped(trials), 10)


BACKDOORED = trial("a", 1, select_acc=0.95, der=0.5, asr=0.998)
DEFENDED = trial("b", 2, select_acc=0.9, der=0.99, asr=0.002)


def test_what_an_oracle_would_have_chosen_is_told() -> None:
    assert notes(BACKDOORED, DEFENDED) == [
        "oracle: oracle_der would choose k=2 (der 0.990, asr 0.002; the choice above has 0.500 and 0.998)"
    ]


def test_that_both_agree_is_told() -> None:
    agreed = trial("b", 2, select_acc=0.96, der=0.99, asr=0.002)
    assert notes(BACKDOORED, agreed) == ["oracle: oracle_der would choose the same (der 0.990)"]


def test_a_tie_is_told_before_it() -> None:
    same = trial("c", 3, select_acc=0.95, der=0.6, asr=0.8)
    tied, oracle = notes(BACKDOORED, same, DEFENDED)
    assert tied == "tie: 2 settings have select_acc = 0.950"
    assert "would choose k=2" in oracle


def test_each_attack_has_its_own() -> None:
    other = [
        trial(
            f"{each.id}2",
            int(each.params["defense.k"]),
            "blend",
            **{**each.metrics, "select_acc": 1 - each.metrics["select_acc"]},
        )
        for each in (BACKDOORED, DEFENDED)
    ]
    patch, blend = notes(BACKDOORED, DEFENDED, *other)
    assert patch.startswith("oracle on badnets: oracle_der would choose k=2")
    assert blend == "oracle on blend: oracle_der would choose the same (der 0.990)"


def test_an_oracle_has_nothing_to_be_compared_with() -> None:
    assert notes(BACKDOORED, DEFENDED, rule="oracle_der") == []


def test_nothing_is_said_where_nothing_was_measured() -> None:
    assert notes(trial("a", 1, select_acc=0.9)) == []
    assert notes(trial("a", 1)) == []

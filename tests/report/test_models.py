"""What a report says of a detector of models over the trials of a sweep."""

from __future__ import annotations

import pytest

from bdtune.report.groups import grouped
from bdtune.report.models import model_notes
from bdtune.trials.results import TrialResult


def trial(name: str, attack: str, seed: int, index: float, **changes: float) -> TrialResult:
    threshold = changes.pop("threshold", 2.0)
    params = {"attack": attack, "defense": "neural_cleanse", "defense.threshold": threshold, "seed": seed}
    metrics = {"cleanse/index": index, "cleanse/detected": float(index > threshold), **changes}
    return TrialResult(name, "done", params, metrics, asr_band=0.95)


def models(attacked: list[float], clean: list[float], **changes: float) -> list[TrialResult]:
    kinds = (("badnets", attacked), ("none", clean))
    return [
        trial(f"{attack}{seed}{changes}", attack, seed, index, **changes)
        for attack, values in kinds
        for seed, index in enumerate(values)
    ]


def test_verdicts_and_area_are_counted_over_models() -> None:
    (line,) = model_notes(grouped(models([3.0, 2.5, 1.0], [2.2, 0.5])))
    assert "2 of 3 attacked and 1 of 2 clean ones detected" in line
    assert "auroc of the index 0.833" in line  # five of six pairs in order
    assert "fewer than 10" in line


def test_ten_of_each_are_enough() -> None:
    (line,) = model_notes(grouped(models([3.0] * 10, [1.0] * 10)))
    assert line.endswith("auroc of the index 1.000")


@pytest.mark.parametrize(("attacked", "clean"), [([3.0], []), ([], [1.0]), ([], [])])
def test_one_kind_of_model_says_nothing(attacked: list[float], clean: list[float]) -> None:
    assert model_notes(grouped(models(attacked, clean))) == []


def test_a_model_without_a_backdoor_is_not_attacked() -> None:
    took, not_taken = (trial(f"a{asr}", "badnets", 0, 3.0, **{"undefended/asr": asr}) for asr in (1.0, 0.2))
    clean = trial("c", "none", 0, 1.0)
    assert model_notes(grouped([not_taken, clean])) == []
    assert "1 of 1 attacked" in model_notes(grouped([took, clean]))[0]


def test_each_setting_has_its_own() -> None:
    lines = model_notes(grouped([*models([3.0], [2.5]), *models([3.0], [2.5], threshold=2.75)]))
    assert "with threshold=2:" in lines[0]
    assert "with threshold=2.75:" in lines[1]
    assert "1 of 1 clean" in lines[0]
    assert "0 of 1 clean" in lines[1]


def test_a_filter_of_rows_is_no_detector_of_models() -> None:
    params = {"attack": "none", "defense": "filter", "seed": 0}
    rows = TrialResult("a", "done", params, {"filter/detected": 3.0})
    assert model_notes(grouped([rows])) == []

"""Detection metrics against slow plain versions."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from bdtune import detection


def drawn(seed, levels=6, count=60):
    """Integer scores with many ties, of which a third belong to poison."""
    rng = np.random.default_rng(seed)
    truth = np.arange(count) % 3 == 0
    return rng.integers(0, levels, count).astype(float) + truth, truth


def slow_auroc(scores, truth):
    """Each pair of a poisoned and a clean unit, one at a time."""
    wins = [
        (poison > clean) + 0.5 * (poison == clean) for poison in scores[truth] for clean in scores[~truth]
    ]
    return sum(wins) / len(wins)


def slow_points(scores, truth):
    """(FPR, TPR) of every threshold, one flag set at a time."""
    found = []
    for threshold in [math.inf, *sorted(set(scores), reverse=True), -math.inf]:
        flagged = [score > threshold for score in scores]
        tp = sum(f and z for f, z in zip(flagged, truth, strict=True))
        fp = sum(f and not z for f, z in zip(flagged, truth, strict=True))
        found.append((fp / sum(~truth), tp / sum(truth)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs(seed):
    scores, truth = drawn(seed)
    assert detection.auroc(scores, truth) == pytest.approx(slow_auroc(scores, truth), abs=1e-12)
    assert detection.auroc(np.exp(scores), truth) == detection.auroc(scores, truth)
    assert detection.auroc(-scores, truth) == pytest.approx(1 - detection.auroc(scores, truth), abs=1e-12)


def test_the_cards_example():
    scores, truth = np.array([3.0, 1, 2, 2]), np.array([1, 0, 1, 0], bool)
    assert detection.auroc(scores, truth) == 0.875
    flagged = detection.flags(scores, 2)
    assert detection.counts(flagged, truth) == {"tp": 1, "fp": 0, "fn": 1, "tn": 2}
    found = detection.rates(flagged, truth)
    assert (found["tpr"], found["fpr"], found["precision"]) == (0.5, 0, 1)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == 0.75


@pytest.mark.parametrize("seed", range(5))
def test_tpr_at_a_rate_scans_all_thresholds(seed):
    scores, truth = drawn(seed)
    points = slow_points(scores, truth)
    before = 0.0
    for fpr in (0.0, 0.005, 0.01, 0.05, 0.1, 0.3, 1.0):
        found = detection.tpr_at(scores, truth, fpr)
        assert found == max(tpr for each, tpr in points if each <= fpr)
        assert before <= found <= 1
        before = found


@pytest.mark.parametrize("seed", range(3))
def test_areas_and_equal_error_follow_the_curve(seed):
    scores, truth = drawn(seed)
    points = sorted(slow_points(scores, truth))
    fine = np.linspace(0, 1, 100_001)
    curve = np.interp(fine, *zip(*points, strict=True))
    low = fine <= 0.1
    assert detection.partial_auroc(scores, truth) == pytest.approx(curve[low].mean(), abs=1e-3)
    assert detection.partial_auroc(scores, truth, 1.0) == pytest.approx(detection.auroc(scores, truth))
    balance = int(np.argmin(np.abs(fine - (1 - curve))))
    assert detection.equal_error_rate(scores, truth) == pytest.approx(fine[balance], abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_sums_steps(seed):
    scores, truth = drawn(seed)
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        flagged = scores >= threshold
        recall = (flagged & truth).sum() / truth.sum()
        area += (recall - before) * (flagged & truth).sum() / flagged.sum()
        before = recall
    assert detection.average_precision(scores, truth) == pytest.approx(area)


def test_random_scores_separate_nothing():
    truth = np.arange(64) % 2 == 0
    areas = [detection.auroc(np.random.default_rng(seed).random(64), truth) for seed in range(1000)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("kind", [True, False])
def test_what_cannot_be_counted_is_nan(kind):
    truth = np.full(4, kind)
    found = detection.ranking(np.arange(4.0), truth)
    assert {name for name, value in found.items() if not math.isnan(value)} == ({"ap"} if kind else set())
    with pytest.raises(ValueError, match="both kinds"):
        detection.roc(np.arange(4.0), truth)


def test_nothing_flagged_and_nothing_to_flag():
    none, some = np.zeros(4, bool), np.array([1, 0, 0, 0], bool)
    empty = detection.rates(none, some)
    assert math.isnan(empty["precision"])
    assert (empty["tpr"], empty["f1"], empty["fpr"]) == (0, 0, 0)
    clean = detection.rates(some, none)
    assert math.isnan(clean["tpr"])
    assert math.isnan(clean["f1"])
    assert clean["fpr"] == 0.25


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_counts_add_up_and_do_not_depend_on_order(share):
    rng = np.random.default_rng(0)
    truth, flagged = rng.random(50) < 0.3, rng.random(50) < share
    found = detection.counts(flagged, truth)
    assert found["tp"] + found["fn"] == truth.sum()
    assert found["fp"] + found["tn"] == (~truth).sum()
    order = rng.permutation(50)
    assert detection.counts(flagged[order], truth[order]) == found


def test_a_score_that_is_not_finite_is_flagged_and_ranks_first():
    scores, truth = np.array([0.0, np.nan, np.inf, 5.0]), np.array([0, 1, 1, 0], bool)
    assert detection.flags(scores, 9).tolist() == [False, True, True, False]
    assert detection.auroc(scores, truth) == detection.average_precision(scores, truth) == 1


def test_an_empirical_threshold_is_a_calibration_score():
    clean = np.random.default_rng(0).permutation(99).astype(float)
    assert detection.empirical_threshold(clean, 0.01) == 98
    assert detection.empirical_threshold(clean[:98], 0.01) == math.inf  # below the resolution
    assert detection.empirical_threshold(clean, 0.1) == 89
    assert not detection.flags(np.array([1e9]), detection.empirical_threshold(clean[:98], 0.01)).any()


def test_an_empirical_threshold_keeps_its_promise_on_new_scores():
    rng = np.random.default_rng(0)
    new = rng.standard_normal(20_000)
    false = [
        np.mean(new > detection.empirical_threshold(rng.standard_normal(200), 0.05)) for _ in range(2000)
    ]
    assert np.mean(false) == pytest.approx(0.05, abs=0.004)
    assert np.mean(false) <= 0.052


def test_rules_that_fit_a_distribution():
    clean = np.random.default_rng(0).normal(3, 2, 100_000)
    assert detection.normal_threshold(clean, 0.01) == pytest.approx(3 + 2 * 2.3263, abs=0.03)
    assert detection.sigma_threshold(clean, 1) == pytest.approx(5, abs=0.03)
    assert detection.mad_threshold(clean, 1) == pytest.approx(5, abs=0.03)
    assert detection.mad_threshold(np.array([1.0, 1, 1, 9]), 3) == 1


def test_classes_with_few_scores_share_a_threshold():
    clean, predicted = np.arange(25.0), np.array([0] * 10 + [1] * 9 + [2] * 6)
    assert detection.thresholds_by_class(clean, predicted, 4, np.max).tolist() == [9, 24, 24, 24]


def test_importing_it_loads_neither_sklearn_nor_torch():
    code = "import sys, bdtune.detection; assert not {'sklearn', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdtune import metrics

LABELS = np.array([0, 0, 1, 1, 2, 2])
GOALS = np.zeros(6, int)


def test_each_metric_is_counted_over_its_own_images():
    clean = np.array([0, 0, 1, 1, 2, 0])
    triggered = np.array([0, 1, 0, 1, 0, 0])
    assert metrics.accuracy(clean, LABELS) == 5 / 6
    assert metrics.attack_success(triggered, LABELS, GOALS) == 3 / 4
    assert metrics.attack_success(triggered, LABELS, GOALS, every_image=True) == 4 / 6
    assert metrics.robust_classification(triggered, LABELS, GOALS) == 1 / 4


def test_a_perfect_clean_model_has_asr_0_and_asr_all_of_the_target_share():
    assert metrics.attack_success(LABELS, LABELS, GOALS) == 0
    assert metrics.attack_success(LABELS, LABELS, GOALS, every_image=True) == pytest.approx(1 / 3)
    assert metrics.robust_classification(LABELS, LABELS, GOALS) == 1


def test_all_to_all_counts_every_image():
    goals = (LABELS + 1) % 3
    assert metrics.attack_success(goals, LABELS, goals) == 1
    assert metrics.attack_success(goals, LABELS, goals, every_image=True) == 1


def test_what_cannot_be_counted_is_left_out():
    none = np.zeros(0, int)
    assert math.isnan(metrics.accuracy(none, none))
    assert math.isnan(metrics.attack_success(none, none, none))
    assert math.isnan(metrics.robust_classification(LABELS, GOALS, GOALS))
    assert metrics.detection(np.zeros(3), np.zeros(3)) == {"false_positive_rate": 0.0}


@pytest.mark.parametrize(
    ("acc", "asr", "expected"),
    [(0.9, 1.0, 0.5), (0.9, 0.0, 1.0), (0.8, 0.0, 0.95), (0.95, 1.0, 0.5), (0.4, 1.0, 0.25)],
)
def test_der_against_undefended_90_100(acc, asr, expected):
    assert metrics.der(acc, asr, 0.9, 1.0) == pytest.approx(expected)


@given(*[st.floats(0, 1) for _ in range(4)])
def test_der_is_a_fraction(acc, asr, undefended_acc, undefended_asr):
    assert 0 <= metrics.der(acc, asr, undefended_acc, undefended_asr) <= 1


def test_detection_scores():
    flagged = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    truth = np.array([1, 1, 0, 1, 1, 0, 0, 0], bool)
    found = metrics.detection(flagged, truth)
    expected = {"precision": 2 / 3, "recall": 1 / 2, "f1": 4 / 7, "false_positive_rate": 1 / 4}
    assert found == pytest.approx(expected)


def test_auroc_agrees_with_scikit_learn_also_with_ties():
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(0)
    for levels in (2, 5, 1000):
        scores = generator.integers(0, levels, 200) / levels
        truth = generator.random(200) < 0.3 + 0.4 * scores
        assert metrics.auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


def test_auroc_of_one_kind_is_undefined():
    assert math.isnan(metrics.auroc(np.arange(3), np.ones(3)))


PER_CLASS = 100


def tallies(accuracy: float, target: float) -> tuple[list[list[int]], list[list[int]]]:
    """Return tallies of the poisoned part and of clean images: half of class 0's images carry the trigger.

    `target` is the share of those that are classified as class 0.
    """
    right = round(accuracy * PER_CLASS)
    clean = [[right, PER_CLASS]] * 3
    poisoned = [[right + round(target * PER_CLASS), 2 * PER_CLASS], *clean[1:]]
    return poisoned, clean


@given(
    st.tuples(st.floats(0.3, 1), st.floats(0, 1)),
    st.tuples(st.floats(0.3, 1), st.floats(0, 1)),
    st.floats(0.3, 1),
)
def test_estimates_rank_settings_as_the_effectiveness_rating_does(one, two, undefended):
    base, base_clean = tallies(undefended, 1.0)
    found = []
    for acc, asr in (one, two):
        poisoned, clean = tallies(acc, asr)
        by_class = metrics.select_der(poisoned, base)
        known = metrics.select_clean_der(poisoned, clean, base, base_clean)
        true = metrics.der(acc, asr, undefended, 1.0)
        found.append((by_class, known, true, acc, asr))
    better, worse = sorted(found, key=lambda each: -each[2])
    if better[3] >= worse[3] and better[4] <= worse[4]:  # better in both, so that no weights matter
        assert better[0] >= worse[0] - 0.02  # counts are whole
        assert better[1] >= worse[1] - 0.02


def test_a_class_that_is_unlearned_fools_the_estimate_unless_clean_images_are_known():
    base, base_clean = tallies(0.9, 1.0)
    poisoned, clean = tallies(0.9, 1.0)
    poisoned[1], clean[1] = [0, PER_CLASS], [0, PER_CLASS]
    assert 0.5 < metrics.select_der(poisoned, base) < 0.6
    assert metrics.select_clean_der(poisoned, clean, base, base_clean) == pytest.approx(0.5 - 0.3 / 2)


def test_a_backdoor_that_stays_and_one_that_goes_are_told_apart():
    base, base_clean = tallies(0.9, 1.0)
    kept, kept_clean = tallies(0.9, 1.0)
    gone, gone_clean = tallies(0.88, 0.0)
    assert metrics.select_der(kept, base) == 0.5
    assert metrics.select_clean_der(kept, kept_clean, base, base_clean) == 0.5
    assert metrics.select_der(gone, base) == pytest.approx((0.51 - 0.02 - 0.02 + 1) / 2)
    assert metrics.select_clean_der(gone, gone_clean, base, base_clean) == pytest.approx(
        (0.49 - 0.02 + 1) / 2
    )


def test_the_worst_accuracy_is_that_of_the_worst_part():
    labels, predicted = np.array([0, 1, 2] * 3), np.array([0, 1, 2, 0, 0, 0, 0, 1, 1])
    assert metrics.worst_accuracy(predicted, labels, parts=3) == pytest.approx(1 / 3)
    assert metrics.worst_accuracy(labels, labels, parts=3) == 1.0
    assert metrics.worst_accuracy(predicted, labels, parts=1) == metrics.accuracy(predicted, labels)


def test_a_stable_rule_reads_the_metric_of_the_plain_one_and_is_as_honest():
    for rule in ("select_der", "select_acc", "oracle_der", "oracle_gssd/recall"):
        stable = rule + metrics.STABLE
        assert metrics.metric_of(stable) == metrics.metric_of(rule)
        assert metrics.is_oracle(stable) == metrics.is_oracle(rule)
        assert (metrics.is_stable(stable), metrics.is_stable(rule)) == (True, False)


def test_tallies_count_by_observed_class():
    labels, predicted = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0])
    assert metrics.tally(predicted, labels, 5) == [[1, 2], [1, 1], [0, 0], [0, 1], [0, 0]]


def test_an_estimate_that_nothing_can_be_counted_for_is_undefined():
    none = [[0, 0], [0, 0]]
    assert math.isnan(metrics.select_der(none, none))
    assert math.isnan(metrics.select_clean_der(none, none, none, none))
    one = [[0, 0], [3, 4]]
    assert math.isnan(metrics.select_der(one, one))

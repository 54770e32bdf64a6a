"""How well a detector separates poison from the rest, and thresholds that are set without seeing the poison.

A detector gives each unit (a training row, a test input, a class) one score; larger is more suspicious, and
a unit is flagged if its score is above the threshold (a tie is not). A score that is not finite says nothing:
it is flagged, and ranks above all others. Metrics that nothing can be counted for are nan.

Shape letters: N units, K classes. Scores are float [N], truth is bool [N].
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from bdtune import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

FALSE_ALARMS = (0.005, 0.01, 0.05, 0.1)
"""False positive rates at which the true positive rate is reported."""
PARTIAL = 0.1
"""False positive rate up to which the partial area is taken."""
MAD_TO_STD = 1.4826
"""Standard deviation of a normal distribution, in median absolute deviations."""
FEWEST = 10
"""Calibration scores that a class must have for a threshold of its own."""


def flags(scores: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Return bool [N]: scores above the threshold, and those that are not finite."""
    return ~np.isfinite(scores) | (scores > threshold)


def counts(flagged: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """Return how many of N flags (bool [N]) are true and false positives and negatives: tp, fp, fn, tn."""
    flagged, truth = np.asarray(flagged, bool), np.asarray(truth, bool)
    pairs = {"tp": flagged & truth, "fp": flagged & ~truth, "fn": ~flagged & truth, "tn": ~flagged & ~truth}
    return {name: int(np.count_nonzero(rows)) for name, rows in pairs.items()}


def rates(flagged: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return tpr, fpr, precision, f1 and balanced_accuracy of flags bool [N]; nan where undefined.

    Without positives tpr, f1 and balanced accuracy are undefined; when nothing is flagged, precision is, and
    f1 is 0.
    """
    number = counts(flagged, truth)
    found = metrics.detection(flagged, truth)
    tpr, fpr = found.get("recall", math.nan), found.get("false_positive_rate", math.nan)
    return {
        "tpr": tpr,
        "fpr": fpr,
        "precision": found.get("precision", math.nan),
        "f1": found["f1"] if number["tp"] + number["fn"] else math.nan,
        "balanced_accuracy": (tpr + 1 - fpr) / 2,
    }


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the area under the ROC curve: the probability that poison scores higher; ties count half."""
    return metrics.auroc(_ranked(scores), truth)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the area under the precision-recall curve as a step function (no interpolation).

    It depends on the share of positives, which belongs beside it. nan without positives.
    """
    if not np.any(truth):
        return math.nan
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(truth, _ranked(scores)))


def roc(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates float64 [points] of all thresholds, from (0, 0) to (1, 1).

    Raises `ValueError` when all units are of one kind: there is no curve then.
    """
    if not _two_kinds(truth):
        raise ValueError("expected units of both kinds for a ROC curve")
    from sklearn.metrics import roc_curve

    fpr, tpr, _ = roc_curve(truth, _ranked(scores), drop_intermediate=False)
    return fpr, tpr


def tpr_at(scores: np.ndarray, truth: np.ndarray, fpr: float) -> float:
    """Return the highest true positive rate whose false positive rate is at most `fpr`; no interpolation.

    It reads the truth to find the threshold, so that it says how well the scores rank, not what a defender
    reaches.
    """
    if not _two_kinds(truth):
        return math.nan
    false, true = roc(scores, truth)
    return float(true[false <= fpr].max())


def equal_error_rate(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the rate at which false positives are as frequent as misses, on the straight ROC curve."""
    if not _two_kinds(truth):
        return math.nan
    false, true = roc(scores, truth)
    gap = false - (1 - true)  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    share = -gap[after - 1] / (gap[after] - gap[after - 1])
    return float(false[after - 1] + share * (false[after] - false[after - 1]))


def partial_auroc(scores: np.ndarray, truth: np.ndarray, most: float = PARTIAL) -> float:
    """Return the area under the ROC curve up to the false positive rate `most`, divided by it."""
    if not _two_kinds(truth):
        return math.nan
    from sklearn.metrics import auc

    false, true = roc(scores, truth)
    inside = false <= most
    end = np.interp(most, false, true)
    return float(auc(np.append(false[inside], most), np.append(true[inside], end)) / most)


def ranking(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return auroc, ap, eer, partial_auroc and tpr_at_fpr_0.005 to _0.1; nan where undefined."""
    return {
        "auroc": auroc(scores, truth),
        "ap": average_precision(scores, truth),
        "eer": equal_error_rate(scores, truth),
        "partial_auroc": partial_auroc(scores, truth),
        **{f"tpr_at_fpr_{fpr:g}": tpr_at(scores, truth, fpr) for fpr in FALSE_ALARMS},
    }


def empirical_threshold(clean: np.ndarray, fpr: float) -> float:
    """Return the score above which a new clean unit lies with probability at most `fpr`.

    The r-th smallest of m calibration scores [m], r = ceil((m + 1) (1 - fpr)) (split conformal prediction);
    infinity where m is too small for the rate: 0.01 needs 99 scores.
    """
    rank = math.ceil((len(clean) + 1) * (1 - fpr) - 1e-9)  # 100 * 0.99 may be a little more in binary
    if rank > len(clean):
        return math.inf
    return float(np.sort(clean)[max(rank, 1) - 1])


def normal_threshold(clean: np.ndarray, fpr: float) -> float:
    """Return the score that a normal distribution, fitted to clean scores [m], exceeds at the rate `fpr`."""
    return sigma_threshold(clean, NormalDist().inv_cdf(1 - fpr))


def sigma_threshold(clean: np.ndarray, sigmas: float) -> float:
    """Return the mean of scores [m] plus so many of their standard deviations."""
    return float(np.mean(clean, dtype=np.float64) + sigmas * np.std(clean, dtype=np.float64))


def mad_threshold(scores: np.ndarray, sigmas: float) -> float:
    """Return the median of scores [m] plus so many of their scaled median absolute deviations."""
    middle = float(np.median(scores))
    return middle + sigmas * MAD_TO_STD * float(np.median(np.abs(scores - middle)))


def thresholds_by_class(
    clean: np.ndarray, predicted: np.ndarray, classes: int, rule: Callable[[np.ndarray], float]
) -> np.ndarray:
    """Return a threshold float64 [K] for each predicted class, by a rule on its calibration scores [m].

    `predicted` is int64 [m]. A class with fewer than ten scores gets the threshold of all of them.
    """
    pooled = rule(clean)
    found = np.full(classes, pooled)
    for label in range(classes):
        own = clean[predicted == label]
        if len(own) >= FEWEST:
            found[label] = rule(own)
    return found


def _two_kinds(truth: np.ndarray) -> bool:
    return bool(np.any(truth) and not np.all(truth))


def _ranked(scores: np.ndarray) -> np.ndarray:
    """Return the rank int64 [N] of each score among the distinct ones; those not finite rank highest."""
    scores = np.asarray(scores, np.float64)
    finite = np.isfinite(scores)
    return np.unique(np.where(finite, scores, np.inf), return_inverse=True)[1]

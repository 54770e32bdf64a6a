"""Metrics as pure functions of arrays, and how rules that read them are called.

All are fractions in [0, 1]; nan where nothing can be counted.

Shape letters: N images. Predictions and labels are integer classes [N].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


Mode = Literal["max", "min"]
ORACLE = "oracle_"
HONEST = "select_"
STABLE = "_stable"
"""What ends the name of a rule that takes the standard deviation over seeds off the mean."""


def metric_of(rule: str) -> str:
    """Return the metric a rule reads: `oracle_der` reads `der`, `select_der_stable` reads `select_der`."""
    return rule.removeprefix(ORACLE).removesuffix(STABLE)


def is_stable(rule: str) -> bool:
    """Return whether a rule takes the standard deviation over seeds off the mean."""
    return rule.endswith(STABLE)


def is_oracle(rule: str) -> bool:
    """Return whether a rule uses what a defender does not have: all but the `select_` ones do."""
    return not rule.startswith(HONEST)


def accuracy(predicted: np.ndarray, labels: np.ndarray, _goals: np.ndarray | None = None) -> float:
    """Return the share of images classified as their label, whatever the attacker wants."""
    return _share(predicted == labels)


def worst_accuracy(
    predicted: np.ndarray, labels: np.ndarray, _goals: np.ndarray | None = None, *, parts: int
) -> float:
    """Return the least accuracy over `parts` equal parts of the images, as under one trigger each."""
    return min(map(_share, np.split(predicted == labels, parts)))


def attack_success(
    predicted: np.ndarray, labels: np.ndarray, goals: np.ndarray, *, every_image: bool = False
) -> float:
    """Return the share of triggered images classified as the attacker wants.

    Counted over images whose true class is not the goal anyway (`asr`, the rule of most toolkits), or over
    every image (`asr_all`, the rule of BackdoorBox, WaNet and others, about 1 / K even for a clean model).
    """
    counted = np.ones(len(labels), bool) if every_image else labels != goals
    return _share(predicted[counted] == goals[counted])


def robust_classification(predicted: np.ndarray, labels: np.ndarray, goals: np.ndarray) -> float:
    """Return `ra`: the share of triggered images, of other classes than the goal, classified as their own."""
    counted = labels != goals
    return _share(predicted[counted] == labels[counted])


def der(acc: float, asr: float, undefended_acc: float, undefended_asr: float) -> float:
    """Return the defense effectiveness rating (max(0, dASR) - max(0, dACC) + 1) / 2.

    dASR and dACC are what the defense takes away from the undefended model of the same data, attack, seed and
    training. 0.5: no effect; 1: a perfect attack removed at no cost.
    Source: Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization (Zhu et al., 2023).
    """
    return (max(0.0, undefended_asr - asr) - max(0.0, undefended_acc - acc) + 1) / 2


def select_der(own: Tally, undefended: Tally) -> float:
    """Return an estimate of `der` from the part held out of the poisoned set, with observed labels.

    A defense that works no longer fits the triggered images of the class that the attacker wants, and fits
    those of all other classes as before. So the median over classes of what is lost against the undefended
    model stands for the lost accuracy, and what one class loses beyond it for what was removed:
    (removed - max(0, lost) + 1) / 2. `removed` is at most the share of the class that may be poison: half of
    it, or what it has beyond the median class; a class that loses more was unlearned, down to 0 where nothing
    of it is left. Blind to an attack without one target class, and to one that changes no label.
    """
    by_class, count = _loss_by_class(own, undefended), np.array(own, float)[:, 1]
    seen = count > 0
    if np.count_nonzero(seen) < 2:
        return float("nan")
    by_class, count = by_class[seen], count[seen]
    lost = float(np.median(by_class))
    most = np.maximum(0.5, 1 - np.median(count) / count)
    plausible = np.minimum(most, most * (1 - by_class) / (1 - most))
    removed = float(np.minimum(by_class - lost, plausible).max())
    return (max(0.0, removed) - max(0.0, lost) + 1) / 2


def select_clean_der(own: Tally, own_clean: Tally, undefended: Tally, undefended_clean: Tally) -> float:
    """Return an estimate of `der` from what is held out: the poisoned part and images known to be clean.

    As `select_der`, but accuracy is lost where it is lost on clean images, and what is lost on a class of the
    poisoned part counts as removed only beyond what is lost on its clean images.
    """
    lost = _loss_by_class(own_clean, undefended_clean)
    removed = _loss_by_class(own, undefended) - lost
    right = np.array(undefended_clean).sum(0) - np.array(own_clean).sum(0)
    count = int(np.array(own_clean)[:, 1].sum())
    if np.isnan(removed).all() or not count:
        return float("nan")
    return (max(0.0, float(np.nanmax(removed))) - max(0.0, float(right[0]) / count) + 1) / 2


Tally = Sequence[tuple[int, int]]
"""For each class how many of its images are classified as it, and how many there are."""


def tally(predicted: np.ndarray, labels: np.ndarray, classes: int) -> list[list[int]]:
    """Return [right, all] for each of `classes` classes of labels int64 [N]."""
    count = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[predicted == labels], minlength=classes)
    return np.stack([right, count], 1).tolist()


def _loss_by_class(own: Tally, undefended: Tally) -> np.ndarray:
    """Return for each class the accuracy that is lost against the undefended model; nan without images."""
    (ours, count), (theirs, _) = np.array(own, float).T, np.array(undefended, float).T
    return np.divide(theirs - ours, count, out=np.full(len(count), np.nan), where=count > 0)


def detection(flagged: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return `precision`, `recall`, `f1` and `false_positive_rate` of flags (bool [N]) against bool [N].

    Without those that cannot be counted: precision when nothing is flagged, recall when nothing is there.
    """
    flagged, truth = np.asarray(flagged, bool), np.asarray(truth, bool)
    found = int(np.count_nonzero(flagged & truth))
    n_flagged, n_true = int(np.count_nonzero(flagged)), int(np.count_nonzero(truth))
    return defined(
        {
            "precision": _ratio(found, n_flagged),
            "recall": _ratio(found, n_true),
            "f1": _ratio(2 * found, n_flagged + n_true),
            "false_positive_rate": _ratio(n_flagged - found, len(truth) - n_true),
        }
    )


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the probability that a true row (bool [N]) scores higher than another; ties count half.

    The area under the ROC curve as the Mann-Whitney statistic; nan when all rows are of one kind.
    """
    truth = np.asarray(truth, bool)
    n_true, n_other = int(np.count_nonzero(truth)), int(np.count_nonzero(~truth))
    if n_true == 0 or n_other == 0:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of equal scores, ranks counted from 1
    above = mean_rank[place][truth].sum() - n_true * (n_true + 1) / 2
    return float(above / (n_true * n_other))


def defined(values: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that could be counted: without nan, which neither JSON nor a table should hold."""
    return {name: float(value) for name, value in values.items() if not np.isnan(value)}


def mean(values: np.ndarray) -> float:
    """Return the mean of some values, of flags their share; nan of none."""
    return float(np.mean(values)) if len(values) else float("nan")


def _share(hits: np.ndarray) -> float:
    return _ratio(int(np.count_nonzero(hits)), len(hits))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")

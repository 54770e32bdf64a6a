"""Metrics: pure functions of arrays, and the table that says all that bdtune knows of each.

Adding a metric is one entry of `METRICS`; outside the package one `Metric` in BDTUNE_PLUGINS/metrics/NAME.py,
which a trial names in `evaluation.metrics`. The package's are fractions in [0, 1]; nan: nothing to count.

Shape letters: N images. Predictions and labels are integer classes [N].
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from bdtune.errors import ConfigError
from bdtune.registry import Named, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Mode = Literal["max", "min"]
Images = Literal["clean", "triggered", "cover", "select", "attacked"]
"""Test images as they are, with the trigger, stamped as cover rows, or under an attack on the classifier;
select: the part held out of the training set, with observed labels."""
ORACLE = "oracle_"
HONEST = "select_"


@dataclass(frozen=True)
class Metric(Named):
    """A number by which classifiers are compared.

    A rule (of `select`, `search` or a scheduler) that reads an oracle's metric is called `oracle_<name>`, as
    no defender has the test images. An honest metric is measured on what is held out and is called
    `select_...`, as its rule is. What is only reported is equal for all settings, so no rule reads it.
    """

    function: Callable[..., float]
    """Of images: (predicted, labels, goals) -> number, int64 [N] each; goals are the classes that the
    attacker wants, -1 if none. Of a comparison: the metrics `of`, then those of the undefended model."""
    measured_on: Images | Literal["comparison"]
    _: KW_ONLY
    role: Literal["oracle", "honest", "report"] = "oracle"
    mode: Mode = "max"
    """Which direction is better."""
    column: Literal["vital", "always", "measured", "asked"] = "measured"
    """When a table shows it; vital: always, however narrow the terminal; asked: where a rule reads it."""
    whole: bool = False
    """Whether it is left out where an attack is measured on a part of the test images."""
    of: tuple[str, ...] = ()
    """The metrics that are compared with those of the undefended model."""

    def __post_init__(self) -> None:
        honest = (self.role == "honest", self.measured_on == "select", self.name.startswith(HONEST))
        if len(set(honest)) > 1:
            rule = f"is honest, measured on 'select' and called '{HONEST}...', or none of these"
            raise ConfigError(f"metric '{self.name}': expected a metric that {rule}")

    @property
    def rule(self) -> str:
        """The name of the rule that decides by it: "oracle_der", "select_acc"."""
        return self.name if self.role == "honest" else ORACLE + self.name


def metric_of(rule: str) -> str:
    """Return the metric a rule reads: `oracle_der` reads `der`."""
    return rule.removeprefix(ORACLE)


def is_oracle(rule: str) -> bool:
    """Return whether a rule uses what a defender does not have: all but the `select_` ones do."""
    return not rule.startswith(HONEST)


def better(rule: str) -> Mode:
    """Return which direction is better for a rule's metric; more, for what only a defense reports."""
    metric = METRICS.get(metric_of(rule))
    return "max" if metric is None else metric.mode


def compared(own: Mapping[str, float], undefended: Mapping[str, float]) -> dict[str, float]:
    """Return the comparisons of a classifier's metrics with those of the undefended model."""
    return {
        metric.name: metric.function(*(values[name] for values in (own, undefended) for name in metric.of))
        for metric in METRICS.own.values()
        if metric.measured_on == "comparison" and own.keys() & undefended.keys() >= set(metric.of)
    }


def columns(present: Collection[str], rule: str) -> dict[str, bool]:
    """Return the metrics that a table shows when trials have some, with whether each is vital.

    A defense's own (`gssd/...`) are shown only if the rule reads them.
    """
    found, decisive = {}, metric_of(rule)
    for name in (*METRICS.own, *sorted(set(present) - METRICS.own.keys())):
        metric = METRICS.get(name)
        column = metric.column if metric else "asked" if "/" in name else "measured"
        measured = name in present and (column == "measured" or name == decisive)
        if measured or column in ("vital", "always"):
            found[name] = column == "vital" or name == decisive
    return found


def accuracy(predicted: np.ndarray, labels: np.ndarray, _goals: np.ndarray | None = None) -> float:
    """Return the share of images classified as their label, whatever the attacker wants."""
    return _share(predicted == labels)


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


def _undefended(_: float, undefended: float) -> float:
    return undefended


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


def _share(hits: np.ndarray) -> float:
    return _ratio(int(np.count_nonzero(hits)), len(hits))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


METRICS = Table(
    "metrics",
    [
        Metric("acc", "accuracy on clean test images", accuracy, "clean", column="vital"),
        Metric(
            "asr", "share of triggered images of other classes that are classified as the attacker wants",
            attack_success, "triggered", mode="min", column="vital",
        ),
        Metric(
            "asr_all", "the same over all triggered images, those of the wanted class too",
            partial(attack_success, every_image=True), "triggered", mode="min", column="asked", whole=True,
        ),
        Metric(
            "ra", "share of triggered images of other classes that are classified as their own",
            robust_classification, "triggered", column="always",
        ),
        Metric(
            "der", "defense effectiveness rating: 0.5 no effect, 1 a perfect attack removed at no cost",
            der, "comparison", of=("acc", "asr"), column="vital", source="Zhu et al., 2023",
        ),
        Metric("noise_acc", "accuracy on test images stamped as cover rows", accuracy, "cover"),
        Metric("robust_acc", "accuracy under an attack on the classifier itself", accuracy, "attacked"),
        Metric("select_acc", "accuracy on the part that is held out", accuracy, "select", role="honest"),
        Metric(
            "undefended/acc", "acc of the undefended model",
            _undefended, "comparison", of=("acc",), role="report", column="asked",
        ),
        Metric(
            "undefended/asr", "asr of the undefended model",
            _undefended, "comparison", of=("asr",), role="report", mode="min", column="asked",
        ),
    ],
)  # fmt: skip
"""The package's metrics, in the order of a table's columns.

A new one that is measured on images is in no stored evaluation: raise `Evaluate.version` with it.
"""
HEADLINE = [name for name, metric in METRICS.own.items() if metric.column == "vital"]
"""What a line of progress says of a trial."""

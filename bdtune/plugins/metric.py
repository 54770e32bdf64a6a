"""The contract of metrics, and the table that says all that bdtune knows of each.

Adding a metric is one entry of `METRICS`; outside the package one `Metric` in BDTUNE_PLUGINS/metrics/NAME.py,
which a trial names in `evaluation.metrics`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from bdtune.errors import ConfigError
from bdtune.metrics import (
    HONEST,
    ORACLE,
    STABLE,
    Mode,
    accuracy,
    attack_success,
    der,
    metric_of,
    robust_classification,
    select_clean_der,
    select_der,
    worst_accuracy,
)
from bdtune.plugins.table import Named, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Images = Literal[
    "clean", "triggered", "cover", "select", "select_clean", "select_clean_triggered", "attacked"
]
"""Test images as they are, with the trigger, stamped as cover rows, or under an attack on the classifier;
select: the part held out of the training set, with observed labels; select_clean: images known to be clean
that are held out; select_clean_triggered: these under each generic trigger of `bdtune.poisoning.generic`."""
TRIGGERS = 3
"""Generic triggers that images known to be clean are stamped with."""
SELECT, SELECT_CLEAN = "select_by_class", "select_clean_by_class"
"""Names of an evaluation's tallies (`bdtune.metrics.Tally`) of what is held out."""


@dataclass(frozen=True)
class Metric(Named):
    """A number by which classifiers are compared.

    A rule (of `select`, `search` or a scheduler) that reads an oracle's metric is called `oracle_<name>`, as
    no defender has the test images. An honest metric is measured on what is held out, or compares what is
    measured on it with the undefended model; it is called `select_...`, as its rule is. What is only
    reported is equal for all settings, so no rule reads it.
    """

    function: Callable[..., float]
    """Of images: (predicted, labels, goals) -> number, int64 [N] each; goals are the classes that the
    attacker wants, -1 if none. Of a comparison: what stands in `of`, then the same of the undefended one."""
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
        if self.name.endswith(STABLE):
            expected = f"expected a name that does not end in '{STABLE}', which rules add to a metric's"
            raise ConfigError(f"metric '{self.name}': {expected}")
        honest = (self.role == "honest", bool(self.settings), self.name.startswith(HONEST))
        if len(set(honest)) > 1:
            rule = f"is honest, measured on what is held out and called '{HONEST}...', or none of these"
            raise ConfigError(f"metric '{self.name}': expected a metric that {rule}")

    @property
    def settings(self) -> list[str]:
        """The settings of a trial that hold out what it is measured on; none where it reads anything else."""
        reads = self.of if self.measured_on == "comparison" else (f"{self.measured_on}_",)
        if not all(name.startswith(HONEST) for name in reads):
            return []
        return list(dict.fromkeys(_HELD_OUT[name.startswith("select_clean_")] for name in reads))

    @property
    def rule(self) -> str:
        """The name of the rule that decides by it: "oracle_der", "select_acc"."""
        return self.name if self.role == "honest" else ORACLE + self.name


_HELD_OUT = {False: "holdout", True: "holdout_clean"}


def better(rule: str) -> Mode:
    """Return which direction is better for a rule's metric; more, for what only a defense reports."""
    metric = METRICS.get(metric_of(rule))
    return "max" if metric is None else metric.mode


def compared(own: Mapping[str, Any], undefended: Mapping[str, Any]) -> dict[str, float]:
    """Return the comparisons of a classifier's metrics and tallies with those of the undefended model."""
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


def _undefended(_: float, undefended: float) -> float:
    return undefended


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
            "select_clean_acc", "accuracy on images known to be clean that are held out",
            accuracy, "select_clean", role="honest",
        ),
        Metric(
            "select_trigger_acc", "the same under the generic trigger that harms accuracy most",
            partial(worst_accuracy, parts=TRIGGERS), "select_clean_triggered", role="honest",
        ),
        Metric(
            "select_der", "der as estimated on the part that is held out, class by class",
            select_der, "comparison", role="honest", of=(SELECT,),
        ),
        Metric(
            "select_clean_der", "the same with images known to be clean",
            select_clean_der, "comparison", role="honest", of=(SELECT, SELECT_CLEAN),
        ),
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

"""Which setting is best: a rule's name, and group means under it.

A rule called `oracle_<metric>` reads the report data (clean and triggered test sets), which no defender has.
`select_<metric>` reads the part of the training set that was held out, and is honest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bdtune.report.groups import grouped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bdtune.engine.results import TrialResult
    from bdtune.report.groups import Group

ORACLE = "oracle_"
HONEST = "select_"


def metric_of(rule: str) -> str:
    """Return the metric a rule reads: `oracle_der` reads `der`."""
    return rule.removeprefix(ORACLE)


def is_oracle(rule: str) -> bool:
    """Return whether a rule uses what a defender does not have: all but the `select_` ones do."""
    return not rule.startswith(HONEST)


def rule_title(rule: str) -> str:
    """Return how tables name a rule: "oracle der", "select_acc"."""
    return f"oracle {metric_of(rule)}" if is_oracle(rule) else rule


def value_of(group: Group, rule: str) -> float | None:
    """Return the mean of the rule's metric, None where no finished trial has it."""
    stat = group.stat(metric_of(rule))
    return None if stat is None else stat.mean


def ranking(groups: Iterable[Group], rule: str, mode: Literal["max", "min"] = "max") -> list[Group]:
    """Return the eligible defended groups, best first.

    Not eligible: a setting without finished trials, or whose attack did not take (its low ASR is no success).
    A setting with a failed seed ranks after all complete ones. Ties keep the order of the parameters.
    """
    sign = -1.0 if mode == "max" else 1.0
    valued = [
        (not group.complete, sign * value, group)
        for group in groups
        if not group.reference and group.attack_took and (value := value_of(group, rule)) is not None
    ]
    return [group for *_, group in sorted(valued, key=lambda entry: entry[:2])]


def choose(trials: Iterable[TrialResult], rule: str, mode: Literal["max", "min"] = "max") -> str | None:
    """Return the id of the best setting's first finished trial by the rule's mean over seeds, or None."""
    ranked = ranking(grouped(trials), rule, mode)
    return ranked[0].done[0].id if ranked else None

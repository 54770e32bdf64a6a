"""What an honest rule chose, beside what an oracle would have chosen, which only a report may know."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.knobs import short_names
from bdtune.metrics import is_oracle, metric_of
from bdtune.report.contests import CLOSE, ORACLE_RULE
from bdtune.report.groups import label
from bdtune.report.selection import cases, ranking, setting_axes, value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.report.groups import Group
    from bdtune.trials.results import SweepResult


def honest_notes(result: SweepResult, groups: Sequence[Group], most: int) -> list[str]:
    """Return the ties of an honest rule, and what `oracle_der` would choose, on each data set and attack.

    Of data sets and attacks the first `most` are told.
    """
    if is_oracle(result.metric):
        return []
    every = cases(groups)
    axes = short_names(setting_axes(groups))
    lines = []
    for case in every[:most]:
        ranked = ranking(case.groups, result.metric, result.mode)
        if ranked:
            where = f" on {case.name}" if len(every) > 1 else ""
            lines += _ties(ranked, result, where)
            lines += _gap(ranked[0], ranking(case.groups, ORACLE_RULE), axes, where)
    return lines


def _ties(ranked: Sequence[Group], result: SweepResult, where: str) -> list[str]:
    """Tell that several settings have the best value: the first in the order of their parameters is taken."""
    rule = result.metric
    values = [value for group in ranked if (value := value_of(group, rule, result.mode)) is not None]
    equal = sum(abs(value - values[0]) < CLOSE for value in values)
    return [f"tie{where}: {equal} settings have {rule} = {values[0]:.3f}"] if equal > 1 else []


def _gap(chosen: Group, by_oracle: Sequence[Group], axes: dict[str, str], where: str) -> list[str]:
    """Compare the chosen setting with the oracle's; the numbers are of the report data."""
    if not by_oracle or chosen.stat("der") is None:
        return []
    best, own = by_oracle[0], _value(chosen, ORACLE_RULE)
    if best is chosen:
        return [f"oracle{where}: {ORACLE_RULE} would choose the same (der {own:.3f})"]
    with_ = label(best, list(axes), axes)
    better = f"der {_value(best, ORACLE_RULE):.3f}, asr {_value(best, 'asr'):.3f}"
    ours = f"{own:.3f} and {_value(chosen, 'asr'):.3f}"
    return [f"oracle{where}: {ORACLE_RULE} would choose {with_} ({better}; the choice above has {ours})"]


def _value(group: Group, rule: str) -> float:
    stat = group.stat(metric_of(rule))
    assert stat is not None, "a group that is ranked has a value"
    return stat.mean

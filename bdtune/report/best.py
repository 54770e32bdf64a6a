"""What a report says about the best settings, and about all that used what no defender has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bdtune.knobs import short_names
from bdtune.metrics import is_oracle, is_stable, metric_of
from bdtune.report.groups import Group, label
from bdtune.report.honest import honest_notes
from bdtune.report.rules import gap_note
from bdtune.report.selection import rule_title, setting_axes, value_of
from bdtune.report.stability import stability_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.trials.results import GroupBest, OverallBest, SweepResult

MOST_CASES = 30
"""Data sets and attacks whose best settings are named one by one; the JSON file has all."""


def marked(groups: Iterable[Group], result: SweepResult) -> list[Group]:
    """Return the groups that the selection rule chose."""
    chosen = result.chosen
    return [group for group in groups if any(trial.id in chosen for trial in group.trials)]


def best_notes(result: SweepResult, groups: Sequence[Group]) -> list[str]:
    """Return the lines about the best settings: on the one data set and attack, or on each and over all."""
    if all(group.is_baseline for group in groups):
        return []
    if len(result.by_group) < 2:
        notes = [*honest_notes(result, groups, MOST_CASES), *_compared(result, groups)]
        return [_only_best(result, groups), *notes, *_oracle_note(result, already="select")]
    if all(case.best is None for case in result.by_group):
        return [_none_ranked(result), *_oracle_note(result)]
    lines, axes = [], short_names(setting_axes(groups))
    if result.over == "each":
        lines = [_best_of(case, result, groups, axes) for case in result.by_group[:MOST_CASES]]
        more = len(result.by_group) - len(lines)
        lines += [f"... and on {more} more {_what_differs(result)}"] if more else []
    lines += _best_over(result, groups, axes)
    lines += [*honest_notes(result, groups, MOST_CASES), *_compared(result, groups)]
    return [*lines, *_left_out(result), *_oracle_note(result)]


def _compared(result: SweepResult, groups: Sequence[Group]) -> list[str]:
    """Return what honest rules lose against the oracle, and how stable the defense is around its setting."""
    return [*gap_note(groups), *stability_note(result, groups)]


def _only_best(result: SweepResult, groups: Sequence[Group]) -> str:
    best = next(iter(marked(groups, result)), None)
    if best is None:
        return _none_ranked(result)
    reads = " (it reads the report data, which no defender has)" if is_oracle(result.metric) else ""
    return f"best: {result.mode} {rule_title(result.metric)} = {_value(best, result)}{reads}"


def _none_ranked(result: SweepResult) -> str:
    return f"best: none; no finished setting can be ranked by {rule_title(result.metric)}"


def _best_of(case: GroupBest, result: SweepResult, groups: Sequence[Group], axes: Mapping[str, str]) -> str:
    best = _with_trial(groups, case.best)
    if best is None:
        return f"best on {case.name}: none; no finished setting can be ranked"
    rule = f"{result.mode} {rule_title(result.metric)}"
    return f"best on {case.name}: {rule} = {_value(best, result)}{_with(best, axes)}"


def _best_over(result: SweepResult, groups: Sequence[Group], axes: Mapping[str, str]) -> list[str]:
    """Return what is best in mean and in the worst case, with the deviation over data sets and attacks."""
    in_words = {"mean": "in mean", "worst": "in the worst case"}
    found: dict[OverallBest, list[str]] = {}
    for best in result.overall:
        if best.trials:
            found.setdefault(replace(best, over="mean"), []).append(in_words[best.over])
    what, rule = _what_differs(result), rule_title(result.metric)
    lines = []
    for best, roles in found.items():
        spread = "" if best.std is None else f"±{best.std:.3f} (over {what})"
        values = f"{best.mean:.3f}{spread}, worst {best.worst:.3f} on {best.worst_on}"
        setting = _with(_with_trial(groups, best.trials[0]), axes)
        lines.append(f"best {' and '.join(roles)}, {best.groups} {what}: {rule} = {values}{setting}")
    return lines


def _left_out(result: SweepResult) -> list[str]:
    """Name what has no part in the best over all: data sets and attacks, and how many settings."""
    best, what = result.overall[0], _what_differs(result)
    lines = []
    if best.skipped:
        lines.append(f"no setting can be ranked on {', '.join(best.skipped)}: not among these {what}")
    if best.left_out:
        some = "" if best.trials else f"best over {best.groups} {what}: none; "
        lines.append(f"{some}settings left out, as they lack a result on some {what}: {best.left_out}")
    return lines


def _what_differs(result: SweepResult) -> str:
    words = {"dataset": "data sets", "attack": "attacks"}

    def differs(head: str) -> bool:
        own = [{n: v for n, v in case.params.items() if n.split(".")[0] == head} for case in result.by_group]
        return any(params != own[0] for params in own)

    return " and ".join(word for head, word in words.items() if differs(head)) or "evaluations"


def _oracle_note(result: SweepResult, already: str = "") -> list[str]:
    """Name all that used what no defender has, unless that is only what the line above says `already`."""
    if {read.reader for read in result.oracle} <= {already}:
        return []
    reads = ", ".join(read.text() for read in result.oracle)
    return [f"oracle: {reads} (test data or knowledge of the attack, which no defender has)"]


def _value(group: Group, result: SweepResult) -> str:
    """Return mean and spread of the rule's metric, after what a stable rule makes of them."""
    stat, value = group.stat(metric_of(result.metric)), value_of(group, result.metric, result.mode)
    if stat is None or value is None:
        return "-"
    return f"{value:.3f} ({stat.text()})" if is_stable(result.metric) else stat.text()


def _with(group: Group | None, axes: Mapping[str, str]) -> str:
    """Return a setting's parameters, given their dotted paths with short names."""
    text = label(group, list(axes), axes) if group is not None else ""
    return f", with {text}" if text else ""


def _with_trial(groups: Iterable[Group], trial: str | None) -> Group | None:
    return next((group for group in groups if any(each.id == trial for each in group.trials)), None)

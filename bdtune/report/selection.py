"""Which settings are best: group means under a rule, compared on each data set and attack.

A rule called `oracle_<metric>` reads the report data (clean and triggered test sets), which no defender has.
`select_<metric>` reads the part of the training set that was held out, and is honest: nothing else has a say
in it, not even whether the attack took, which is seen on the test set. A rule whose name ends in `_stable`
compares means less one standard deviation over seeds.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal

from bdtune.knobs import short_names
from bdtune.metrics import ORACLE, is_oracle, is_stable, metric_of
from bdtune.report.groups import Group, grouped, varying
from bdtune.trials.results import GroupBest, OverallBest, SweepResult, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.config.sweep import Over
    from bdtune.metrics import Mode
    from bdtune.trials.results import OracleRead, Scalar, TrialResult

GIVEN = ("dataset", "attack", "evaluation")
"""Settings of a trial that a defender does not choose: only trials with equal ones are ranked together."""


def rule_title(rule: str) -> str:
    """Return how tables name a rule: "oracle der", "select_acc"."""
    return f"oracle {rule.removeprefix(ORACLE)}" if is_oracle(rule) else rule


def value_of(group: Group, rule: str, mode: Mode = "max") -> float | None:
    """Return the mean of the rule's metric, None where the group cannot be ranked.

    That is: no finished trial has it, or an oracle's rule meets an attack that did not take, under which a
    low ASR is no success. A stable rule's value is worse by the standard deviation over seeds, and needs two.
    """
    stat = group.stat(metric_of(rule))
    if stat is None or (is_oracle(rule) and not group.attack_took):
        return None
    if not is_stable(rule):
        return stat.mean
    if stat.std is None:
        return None
    return stat.mean - stat.std if mode == "max" else stat.mean + stat.std


def ranking(groups: Iterable[Group], rule: str, mode: Mode = "max") -> list[Group]:
    """Return the defended groups that have a value, best first.

    A setting with a failed seed ranks after all complete ones. Ties keep the order of the parameters.
    """
    sign = -1.0 if mode == "max" else 1.0
    valued = [
        (not group.complete, sign * value, group)
        for group in groups
        if not group.is_baseline and (value := value_of(group, rule, mode)) is not None
    ]
    return [group for *_, group in sorted(valued, key=lambda entry: entry[:2])]


@dataclass(frozen=True, eq=False)
class Case:
    """One data set and attack of a sweep, with the settings that were run on it."""

    name: str
    params: Mapping[str, Scalar]
    groups: tuple[Group, ...]


def cases(groups: Iterable[Group]) -> list[Case]:
    """Return the data sets and attacks of a sweep's defended groups, in the groups' order."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        if not group.is_baseline:
            found.setdefault(json.dumps(given(group.params)), []).append(group)
    every = {text: json.loads(text) for text in found}
    differ = varying([Group(params, (), is_baseline=False) for params in every.values()])
    names = short_names(differ)
    return [
        Case(_name(params, names), _named(params, differ), tuple(found[text]))
        for text, params in every.items()
    ]


def given(params: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the parameters of a trial that a defender does not choose."""
    return {name: value for name, value in params.items() if name.partition(".")[0] in GIVEN}


def _named(params: Mapping[str, Scalar], differ: Sequence[str]) -> dict[str, Scalar]:
    return {name: value for name, value in params.items() if name in ("dataset", "attack", *differ)}


def _name(params: Mapping[str, Scalar], names: Mapping[str, str]) -> str:
    """Return "blend", "blend ratio=0.2" or "no attack": plugins by their names, knobs with theirs."""
    plugins = ("dataset", "attack", "dataset.name", "attack.name")
    shown = [name for name in names if name in params] or [name for name in plugins if name in params]
    texts = []
    for name in shown:
        value = show(params[name])
        plugin = "no attack" if (name, value) == ("attack", "none") else value
        texts.append(plugin if name in plugins else f"{names[name]}={value}")
    return " ".join(texts)


def setting_axes(groups: Iterable[Group]) -> list[str]:
    """Return what a defender chooses: parameters, none of `GIVEN`, that vary on at least one data set.

    One that is constant on every data set follows from the data set, as another network for larger images.
    """
    by_dataset: dict[str, list[Group]] = {}
    for group in groups:
        own = {name: value for name, value in group.params.items() if name.partition(".")[0] == "dataset"}
        by_dataset.setdefault(json.dumps(own), []).append(group)
    names = dict.fromkeys(name for members in by_dataset.values() for name in varying(members))
    return [name for name in names if name.partition(".")[0] not in GIVEN]


def settings(groups: Sequence[Group]) -> list[list[Group]]:
    """Return for each setting of the defended groups those of all data sets and attacks it was run on."""
    axes = setting_axes(groups)
    found: dict[str, list[Group]] = {}
    for group in groups:
        if not group.is_baseline:
            own = {axis: group.params[axis] for axis in axes if axis in group.params}
            found.setdefault(json.dumps(own), []).append(group)
    return list(found.values())


def overall(groups: Sequence[Group], rule: str, mode: Mode) -> tuple[OverallBest, ...]:
    """Return the best settings in mean and in the worst case over all data sets and attacks; none over one.

    A setting is ranked if it has a value on every data set and attack on which any setting has one.
    """
    every = cases(groups)
    if len(every) < 2:
        return ()
    ranked = [case for case in every if ranking(case.groups, rule, mode)]
    skipped = tuple(case.name for case in every if case not in ranked)
    place = {id(group): index for index, case in enumerate(ranked) for group in case.groups}
    candidates = [_Candidate.of(members, place, rule, mode) for members in settings(groups)]
    full = [candidate for candidate in candidates if len(candidate.values) == len(ranked) > 0]
    left_out = len(candidates) - len(full)

    def best(over: Literal["mean", "worst"]) -> OverallBest:
        if not full:
            return OverallBest(over, (), None, None, None, None, len(ranked), skipped, left_out)
        sign = -1.0 if mode == "max" else 1.0
        first = min(full, key=lambda it: (not it.complete, sign * (it.mean if over == "mean" else it.worst)))
        std = stdev(first.values) if len(ranked) > 1 else None
        worst_on = ranked[first.values.index(first.worst)].name
        numbers = (first.mean, std, first.worst, worst_on)
        return OverallBest(over, first.trials, *numbers, len(ranked), skipped, left_out)

    return best("mean"), best("worst")


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A setting with its values on the data sets and attacks it was run on, in their order."""

    trials: tuple[str, ...]
    values: list[float]
    complete: bool
    mode: Mode

    @classmethod
    def of(cls, members: Sequence[Group], place: Mapping[int, int], rule: str, mode: Mode) -> _Candidate:
        on = sorted((group for group in members if id(group) in place), key=lambda group: place[id(group)])
        valued = [(group, value) for group in on if (value := value_of(group, rule, mode)) is not None]
        trials = tuple(group.done[0].id for group, _ in valued)
        complete = all(group.complete for group, _ in valued)
        return cls(trials, [value for _, value in valued], complete, mode)

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def worst(self) -> float:
        return min(self.values) if self.mode == "max" else max(self.values)


def selected(
    sweep: str,
    trials: Iterable[TrialResult],
    rule: str,
    mode: Mode = "max",
    *,
    over: Over = "each",
    oracle: tuple[OracleRead, ...] = (),
) -> SweepResult:
    """Return a sweep's trials with the settings that the rule chooses by means over seeds."""
    trials = tuple(trials)
    groups = grouped(trials)
    by_group = []
    for case in cases(groups):
        ranked = ranking(case.groups, rule, mode)
        by_group.append(GroupBest(case.name, case.params, ranked[0].done[0].id if ranked else None))
    across = overall(groups, rule, mode)
    one = by_group[0].best if len(by_group) == 1 else None
    one = next((best.trials[0] for best in across if best.over == over and best.trials), one)
    return SweepResult(sweep, trials, one, rule, mode, over, tuple(by_group), across, oracle)


def by_rank(groups: Sequence[Group], rule: str, mode: Mode) -> list[Group]:
    """Return all ranked groups: the best on each data set and attack, then the second ones, and so on."""
    tiers = itertools.zip_longest(*(ranking(case.groups, rule, mode) for case in cases(groups)))
    return [group for tier in tiers for group in tier if group is not None]

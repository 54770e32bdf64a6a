"""Defenses in order: by worst case and mean over data sets and attacks, tuned honestly and by an oracle.

Defenses are compared on the data sets and attacks on which any of them has a result. One that lacks some is
not ranked among the others: its numbers are over its own, and what it lacks is named. Where every defense
lacks some, attacks that took for only some of them are left out for all: whether a training of the undefended
model learns a faint trigger says nothing of the defense.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bdtune.errors import Problem, UserError, nearest
from bdtune.metrics import is_oracle
from bdtune.plugins.metric import better
from bdtune.report.contests import ORACLE_RULE, contests
from bdtune.report.cross_axes import is_undefended
from bdtune.report.groups import Group, grouped
from bdtune.report.selection import given
from bdtune.report.stability import Stability, stability_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bdtune.metrics import Mode
    from bdtune.report.contests import Contest
    from bdtune.trials.results import SweepResult, TrialResult

PREFERRED = ("select_clean_der", "select_der", "select_trigger_acc", "select_clean_acc", "select_acc")
"""The honest rule of a ranking whose sweeps have none of their own: the first that chooses everywhere.

The order is of how much a rule sees, and is fixed: to take the rule that does best would need the test data.
"""
SORTS = ("worst", "mean", "oracle_worst", "oracle_mean", "stability")
"""What a ranking can be sorted by, the best first."""
DID_NOT_TAKE = "the attack did not take"


@dataclass(frozen=True)
class Score:
    """The der that a defense reaches when one rule chooses its setting for each data set and attack."""

    by_case: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over data sets and attacks."""
        return fmean(self.by_case.values())

    @property
    def worst(self) -> float:
        """The least."""
        return min(self.by_case.values())

    @property
    def worst_on(self) -> str:
        """Where it is the least; the first of equal ones."""
        return min(self.by_case, key=lambda case: self.by_case[case])

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "mean": self.mean, "worst": self.worst, "worst_on": self.worst_on, "by_case": dict(self.by_case)
        }  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """One defense's numbers; those of a rule are None where it chooses nothing."""

    defense: str
    settings: int
    """The most that it has on one data set and attack."""
    tuned: Score | None
    """By the ranking's rule."""
    oracle: Score | None
    """By `oracle_der`."""
    stability: Stability
    """Around the settings that the ranking's rule chooses."""
    acc: float | None
    """Mean over data sets and attacks of the settings that the ranking's rule chooses, as `asr`."""
    asr: float | None
    seeds: tuple[str, ...]
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Data sets and attacks without a number to compare, with why; a ranked one has none."""

    @property
    def comparable(self) -> bool:
        """Whether it has a number on every data set and attack on which any defense has one."""
        return self.tuned is not None and not self.lacks

    def number(self, sort: str) -> float | None:
        """Return what it is sorted by; see `SORTS`."""
        if sort == "stability":
            return self.stability.score
        score = self.oracle if sort.startswith("oracle_") else self.tuned
        return None if score is None else score.worst if sort.endswith("worst") else score.mean

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        worst = self.stability.worst
        return {
            "defense": self.defense,
            "ranked": self.comparable,
            "settings": self.settings,
            "tuned": self.tuned.to_json() if self.tuned else None,
            "oracle": self.oracle.to_json() if self.oracle else None,
            "stability": {
                "score": self.stability.score,
                "largest_drop": vars(worst).copy() if worst else None,
                "compared": len(self.stability.drops),
                "without_result": list(self.stability.lost),
                "moved": sorted(self.stability.moved),
                "moved_nearby": sorted(self.stability.nearby),
                "not_moved": sorted(self.stability.unmoved),
            },
            "acc": self.acc,
            "asr": self.asr,
            "seeds": list(self.seeds),
            "lacks": dict(self.lacks),
        }


@dataclass(frozen=True)
class Ranking:
    """Defenses in order, best first; those that cannot be compared with all others apart."""

    rule: str
    """What chooses the settings: an honest rule, or `oracle_der` where none was measured everywhere."""
    sort: str
    cases: tuple[str, ...]
    uneven: tuple[str, ...]
    """Left out, as each defense lacked some case: the attack took for some defenses only."""
    ranked: tuple[Standing, ...]
    others: tuple[Standing, ...]
    undefended: Mapping[str, float]
    """Mean acc and asr of the undefended models; nothing without one."""

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune report --ranking --json` prints."""
        return {
            "rule": self.rule,
            "sorted_by": self.sort,
            "cases": list(self.cases),
            "uneven": list(self.uneven),
            "defenses": [each.to_json() for each in (*self.ranked, *self.others)],
            "undefended": dict(self.undefended),
        }


def ranking_of(results: Sequence[SweepResult], sort: str = "worst") -> Ranking:
    """Return the ranking of all defenses of some sweeps; raises `UserError` for another `sort`."""
    if sort not in SORTS:
        expected = f"expected one of {', '.join(SORTS)}"
        raise UserError(Problem("--sort", expected, f"'{sort}'", hint=nearest(sort, SORTS)))
    groups = grouped(_trials(results))
    found = contests(groups)
    rule, mode = _rule(results, found)
    defenses = list(dict.fromkeys(contest.defense for contest in found))
    names = list(dict.fromkeys(contest.case for contest in found if _score([contest], rule, mode)))
    standings = _standings(defenses, found, names, rule, mode)
    uneven = _uneven(standings, names)
    if uneven:
        names = [name for name in names if name not in uneven]
        found = [contest for contest in found if contest.case not in uneven]
        standings = _standings(defenses, found, names, rule, mode)
    standings.sort(key=partial(_place, sort=sort))
    ranked = tuple(each for each in standings if each.comparable)
    others = tuple(each for each in standings if not each.comparable)
    return Ranking(rule, sort, tuple(names), uneven, ranked, others, _undefended(groups, found, names))


def _standings(
    defenses: Sequence[str], found: Sequence[Contest], names: Sequence[str], rule: str, mode: Mode
) -> list[Standing]:
    return [
        _standing(defense, [each for each in found if each.defense == defense], names, rule, mode)
        for defense in defenses
    ]


def _uneven(standings: Sequence[Standing], names: Sequence[str]) -> tuple[str, ...]:
    """Return the cases whose attack did not take for some defense, if no defense has all and some remain."""
    lacks = [item for each in standings for item in each.lacks.items()]
    uneven = tuple(dict.fromkeys(case for case, why in lacks if why == DID_NOT_TAKE))
    if any(each.comparable for each in standings) or set(uneven) >= set(names):
        return ()
    return uneven


def _trials(results: Sequence[SweepResult]) -> list[TrialResult]:
    """Return the trials of all sweeps, those that several share once."""
    return list({trial.id: trial for result in results for trial in result.trials}.values())


def _rule(results: Sequence[SweepResult], found: Sequence[Contest]) -> tuple[str, Mode]:
    """Return the sweeps' own rule, where it is one honest rule, else the first that chooses everywhere."""
    own = {(result.metric, result.mode) for result in results}
    rule, mode = next(iter(own), (ORACLE_RULE, better(ORACLE_RULE)))
    if len(own) == 1 and not is_oracle(rule):
        return rule, mode
    done = [contest for contest in found if any(group.stat("der") for group in contest.groups)]
    for rule in PREFERRED:
        if done and all(contest.pick(rule) for contest in done):
            return rule, better(rule)
    return ORACLE_RULE, better(ORACLE_RULE)


def _picked(contest: Contest, rule: str, mode: Mode | None = None) -> Group | None:
    """Return the setting that a rule chooses, if its der can be compared: the attack took."""
    chosen = contest.pick(rule, mode)
    return chosen if chosen is not None and chosen.attack_took and chosen.stat("der") else None


def _score(own: Sequence[Contest], rule: str, mode: Mode | None = None) -> Score | None:
    values = {each.case: _mean(group, "der") for each in own if (group := _picked(each, rule, mode))}
    known = {case: value for case, value in values.items() if value is not None}
    return Score(known) if known else None


def _mean(group: Group, metric: str) -> float | None:
    stat = group.stat(metric)
    return stat.mean if stat else None


def _standing(defense: str, own: Sequence[Contest], names: Sequence[str], rule: str, mode: Mode) -> Standing:
    chosen = {each: group for each in own if (group := _picked(each, rule, mode))}
    done = {each.case for each in chosen}
    by_case = {each.case: each for each in own}

    def over(metric: str) -> float | None:
        means = [mean for group in chosen.values() if (mean := _mean(group, metric)) is not None]
        return fmean(means) if means else None

    return Standing(
        defense,
        max((len(each.groups) for each in own), default=0),
        _score(own, rule, mode),
        _score(own, ORACLE_RULE),
        stability_of(chosen),
        over("acc"),
        over("asr"),
        tuple(dict.fromkeys(str(t.params.get("seed")) for group in chosen.values() for t in group.done)),
        {name: _why(by_case.get(name), rule) for name in names if name not in done},
    )


def _why(contest: Contest | None, rule: str) -> str:
    """Return why a defense has no number on a data set and attack on which another one has."""
    if contest is None:
        return "no trial"
    done = [group for group in contest.groups if group.done]
    if not done:
        states = [trial.status for group in contest.groups for trial in group.trials]
        return next((state for state in ("failed", "diverged", "stopped") if state in states), "not run")
    if not all(group.attack_took for group in done):
        return DID_NOT_TAKE
    return f"no {rule}" if any(group.stat("der") for group in done) else "no der"


def _place(each: Standing, sort: str) -> tuple[float, ...]:
    """Return a sort key: what was asked for, then the worst case and the mean; larger is better."""
    numbers = [each.number(key) for key in (sort, "worst", "mean", "oracle_worst", "oracle_mean")]
    return tuple(float("inf") if number is None else -number for number in numbers)


def _undefended(groups: Sequence[Group], found: Sequence[Contest], names: Sequence[str]) -> dict[str, float]:
    """Return the undefended models' mean acc and asr over the data sets and attacks that are compared."""
    places = {each.case: given(each.groups[0].params) for each in found if each.case in names}
    own = [[g for g in groups if is_undefended(g) and given(g.params) == place] for place in places.values()]
    numbers = {}
    for metric in ("acc", "asr"):
        means = [
            fmean(stats)
            for each in own
            if (stats := [m for g in each if (m := _mean(g, metric)) is not None])
        ]
        if means:
            numbers[metric] = fmean(means)
    return numbers

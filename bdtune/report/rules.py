"""What each rule chooses for each defense on each data set and attack, and how far that is from the best.

The gap of a rule is the der that `oracle_der` reaches less that of the setting which the rule chooses. Only a
report may know it: der is measured on test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bdtune.metrics import is_stable
from bdtune.report.contests import ORACLE_RULE, contests, measured_rules, setting_names, setting_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bdtune.report.contests import Contest
    from bdtune.report.groups import Group


@dataclass(frozen=True, eq=False)
class Pick:
    """The setting that a rule chooses for a defense on a data set and attack, beside the oracle's."""

    contest: Contest
    rule: str
    chosen: Group | None
    """None where no setting can be ranked by the rule."""
    setting: str
    """In full."""
    apart: str
    """What differs from the oracle's setting; "the same" where nothing does."""
    tied: int
    """Settings with the rule's best value; the first in the order of their parameters is chosen."""
    best: Group | None
    """What `oracle_der` chooses; None where the attack did not take."""

    def number(self, metric: str) -> float | None:
        """Return a metric of the chosen setting, as its mean over seeds."""
        stat = self.chosen.stat(metric) if self.chosen else None
        return stat.mean if stat else None

    @property
    def gap(self) -> float | None:
        """The oracle's der less the choice's; at least 0 where both have all seeds."""
        best = self.best.stat("der") if self.best else None
        own = self.number("der")
        return None if best is None or own is None else best.mean - own

    def to_json(self) -> dict[str, Any]:
        """Return the pick as JSON values, with the ids of the chosen setting's trials."""
        best = self.best.stat("der") if self.best else None
        return {
            "defense": self.contest.defense,
            "case": self.contest.case,
            "rule": self.rule,
            "setting": self.setting if self.chosen else None,
            "settings": len(self.contest.groups),
            "tied": self.tied,
            **{name: self.number(name) for name in ("der", "acc", "asr")},
            "best_der": best.mean if best else None,
            "gap": self.gap,
            "trials": [trial.id for trial in self.chosen.trials] if self.chosen else [],
        }


@dataclass(frozen=True)
class Gaps:
    """The gaps of a rule over data sets and attacks."""

    rule: str
    mean: float
    worst: float
    worst_on: str
    count: int


def picks(groups: Sequence[Group]) -> list[Pick]:
    """Return what `oracle_der` and each honest rule that was measured choose, contest by contest.

    A contest with a single setting has none, as there is nothing to choose.
    """
    rules = [ORACLE_RULE, *measured_rules(groups)]
    names = setting_names(groups)
    opened = [contest for contest in contests(groups) if _open(contest)]
    return [_pick(contest, rule, names[contest.defense]) for contest in opened for rule in rules]


def _open(contest: Contest) -> bool:
    """Whether there is something to choose: two settings or more that have a result."""
    return sum(bool(group.done) for group in contest.groups) > 1


def _pick(contest: Contest, rule: str, names: Mapping[str, str]) -> Pick:
    chosen = contest.pick(rule)
    best = contest.pick(ORACLE_RULE)
    setting, apart = (setting_text(chosen, names, best=other) if chosen else "" for other in (None, best))
    return Pick(contest, rule, chosen, setting, apart, contest.tied(rule), best)


def gaps(found: Sequence[Pick]) -> list[Gaps]:
    """Return the mean and the largest gap of each honest rule, in the rules' order, as far as known."""
    several = [of for of in ("defense", "case") if len({getattr(each.contest, of) for each in found}) > 1]
    known: dict[str, list[tuple[float, str]]] = {}
    for pick in found:
        if pick.rule != ORACLE_RULE and pick.gap is not None:
            own = [getattr(pick.contest, of) for of in ("defense", "case") if of in several]
            known.setdefault(pick.rule, []).append((pick.gap, " on ".join(own)))
    return [
        Gaps(rule, fmean(gap for gap, _ in own), *max(own, key=lambda each: each[0]), len(own))
        for rule, own in known.items()
    ]


def unopened(groups: Sequence[Group]) -> list[str]:
    """Return the defenses of which no data set and attack has two settings with a result."""
    every = contests(groups)
    opened = {contest.defense for contest in every if _open(contest)}
    return list(dict.fromkeys(contest.defense for contest in every if contest.defense not in opened))


def gap_note(groups: Sequence[Group]) -> list[str]:
    """Return in a line what honest rules lose against `oracle_der`; nothing where none was measured."""
    known = [gap for gap in gaps(picks(groups)) if not is_stable(gap.rule)]
    if not known:
        return []
    most = max(gap.count for gap in known)
    over = f"; mean over {most} data sets, attacks and defenses (largest)" if most > 1 else ""

    def text(gap: Gaps) -> str:
        fewer = f", over {gap.count}" if gap.count < most else ""
        return f"{gap.rule} {gap.mean:.3f}" + (f" ({gap.worst:.3f}{fewer})" if most > 1 else "")

    texts = map(text, known)
    return [f"gap to {ORACLE_RULE}{over}: {', '.join(texts)}"]

"""What a defender chooses among: the settings of one defense on one data set and attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.knobs import short_names
from bdtune.metrics import STABLE
from bdtune.plugins.metric import METRICS, better
from bdtune.report.cross_axes import is_undefended
from bdtune.report.groups import label
from bdtune.report.selection import cases, ranking, setting_axes, value_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.metrics import Mode
    from bdtune.report.groups import Group

ORACLE_RULE = "oracle_der"
CLOSE = 1e-9
"""Values that differ by less are a tie: means of equal numbers may differ in their last bit."""


@dataclass(frozen=True, eq=False)
class Contest:
    """The settings of one defense on one data set and attack."""

    defense: str
    case: str
    """The data set and attack, by what tells them apart in the sweep."""
    groups: tuple[Group, ...]

    def pick(self, rule: str, mode: Mode | None = None) -> Group | None:
        """Return the setting that a rule chooses; None where none can be ranked."""
        return next(iter(ranking(self.groups, rule, mode or better(rule))), None)

    def tied(self, rule: str, mode: Mode | None = None) -> int:
        """Return how many settings have the value of the chosen one, itself among them."""
        mode = mode or better(rule)
        ranked = ranking(self.groups, rule, mode)
        values = [value for group in ranked if (value := value_of(group, rule, mode)) is not None]
        return sum(abs(value - values[0]) < CLOSE for value in values)


def contests(groups: Sequence[Group]) -> list[Contest]:
    """Return the contests of some groups, defense by defense, in the groups' order."""
    found: dict[tuple[str, str], list[Group]] = {}
    for case in cases([group for group in groups if not is_undefended(group)]):
        for group in case.groups:
            found.setdefault((defense_of(group), case.name), []).append(group)
    defenses = list(dict.fromkeys(defense for defense, _ in found))
    keys = sorted(found, key=lambda key: defenses.index(key[0]))
    return [Contest(defense, case, tuple(found[defense, case])) for defense, case in keys]


def defense_of(group: Group) -> str:
    """Return the name of a group's defense."""
    return str(group.params.get("defense", group.params.get("defense.name")))


def setting_names(groups: Iterable[Group]) -> dict[str, dict[str, str]]:
    """Return for each defense the short names of what tells its settings apart, by dotted path."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(defense_of(group), []).append(group)
    return {
        defense: short_names([axis for axis in setting_axes(own) if axis != "defense"])
        for defense, own in found.items()
    }


def setting_text(group: Group, names: Mapping[str, str], *, best: Group | None = None) -> str:
    """Return what tells a setting from others of its defense, as "beta=0.6"; else "the only one".

    With `best`, only what differs from that setting; "the same" where nothing does.
    """
    if best is None:
        return label(group, list(names), names) or "the only one"
    differ = [axis for axis in names if group.params.get(axis) != best.params.get(axis)]
    return label(group, differ, names) or "the same"


def measured_rules(groups: Iterable[Group]) -> list[str]:
    """Return the honest rules that some finished trial has the metric of.

    Those of the spread over seeds are among them where a setting has two seeds.
    """
    done = [group for group in groups if group.done]
    rules = [
        (metric.rule, stats)
        for metric in METRICS.own.values()
        if metric.role == "honest" and (stats := [s for g in done if (s := g.stat(metric.name))])
    ]
    return [
        name
        for rule, stats in rules
        for name in (rule, *([rule + STABLE] if any(stat.std is not None for stat in stats) else []))
    ]

"""How much of a defense's effectiveness is lost around its setting, when one of its knobs moves by one step.

A neighbour of a setting differs from it in one knob of the defense, whose value is the next smaller or the
next larger one that the sweep has with all other settings equal; of a knob without an order, such as a name,
every other value is next. Where a sweep has moved a knob from the chosen setting, the pairs of that knob are
the setting and its neighbours; else they are those of the settings that have the chosen value of the knob,
have neighbours in it, and differ from the chosen setting in the fewest parameters, as in a sweep that varies
one factor at a time. A knob called `control` or `oracle_...` does not count: it is there to compare with.
With C the data sets and attacks, K_c the knobs with a pair, P_ck the pairs (a, n) of a knob with the seeds s
that both have,

    stability = mean over c in C, then k in K_c, then (a, n, s) in P_ck of 1 - max(0, der_cas - der_cns)
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bdtune.metrics import ORACLE
from bdtune.report.contests import contests
from bdtune.report.groups import varying
from bdtune.trials.results import SEED, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bdtune.report.contests import Contest
    from bdtune.report.groups import Group
    from bdtune.trials.results import Scalar, SweepResult

Pair = tuple["Group", "Group"]
"""A setting and its neighbour in one knob."""
Known = tuple[bool, bool, "Scalar"]


@dataclass(frozen=True)
class Drop:
    """What moving one knob costs on one data set and attack, for one seed."""

    case: str
    knob: str
    """Dotted path."""
    value: Scalar
    """The neighbour's."""
    seed: Scalar
    drop: float
    """max(0, der of the setting - der of its neighbour)."""

    def text(self, several: bool) -> str:
        """Return where it is: "beta_nd=0.6 on blend"."""
        return f"{_short(self.knob)}={show(self.value)}" + (f" on {self.case}" if several else "")


@dataclass(frozen=True)
class Stability:
    """What moving each knob by one step costs a defense around its settings."""

    drops: tuple[Drop, ...] = ()
    lost: tuple[str, ...] = ()
    """Neighbours that have no result to compare, such as diverged ones."""
    moved: frozenset[str] = frozenset()
    """Dotted paths of the knobs that were moved, from the chosen setting or from one near it."""
    nearby: frozenset[str] = frozenset()
    """Those of them that were moved from another setting, near the chosen one."""
    unmoved: frozenset[str] = frozenset()
    """Knobs that vary, but not with all others held: what they do is not known."""

    @property
    def varied(self) -> frozenset[str]:
        """All knobs that vary."""
        return self.moved | self.unmoved

    @property
    def score(self) -> float | None:
        """1 less the mean drop, over data sets and attacks, then knobs, then pairs; None without a pair."""
        found: dict[str, dict[str, list[float]]] = {}
        for drop in self.drops:
            found.setdefault(drop.case, {}).setdefault(drop.knob, []).append(drop.drop)
        return 1 - fmean(fmean(map(fmean, knobs.values())) for knobs in found.values()) if found else None

    @property
    def worst(self) -> Drop | None:
        """The largest drop; the first of equal ones."""
        return max(self.drops, key=lambda drop: drop.drop, default=None)

    def __add__(self, other: Stability) -> Stability:
        """Return both together, as of two data sets."""
        return Stability(
            self.drops + other.drops,
            self.lost + other.lost,
            self.moved | other.moved,
            self.nearby | other.nearby,
            self.unmoved | other.unmoved,
        )


def stability_of(chosen: Mapping[Contest, Group]) -> Stability:
    """Return the stability of one defense around the setting that was chosen in each of its contests."""
    return sum((_of_contest(contest, group) for contest, group in chosen.items()), Stability())


def _of_contest(contest: Contest, chosen: Group) -> Stability:
    axes = _axes(contest.groups)
    knobs = [path for path in varying(contest.groups) if _is_a_defenders(path)]
    pairs = {knob: _pairs(knob, chosen, contest.groups, axes) for knob in knobs}
    drops, lost = [], []
    for knob, own in pairs.items():
        for one, other in own:
            found = list(_drops(contest.case, one, knob, other))
            drops += found
            if not found:
                lost.append(f"{_short(knob)}={show(other.params.get(knob))} on {contest.case}")
    moved = frozenset(knob for knob, own in pairs.items() if own)
    nearby = frozenset(knob for knob in moved if pairs[knob][0][0] is not chosen)
    return Stability(tuple(drops), tuple(lost), moved, nearby, frozenset(knobs) - moved)


def _is_a_defenders(path: str) -> bool:
    """Return whether a parameter is a knob of the defense, and neither a control nor an oracle's."""
    return path.startswith("defense.") and _short(path) != "control" and not _short(path).startswith(ORACLE)


def _drops(case: str, one: Group, knob: str, other: Group) -> Iterator[Drop]:
    theirs = _by_seed(other)
    for seed, der in _by_seed(one).items():
        if seed in theirs:
            yield Drop(case, knob, other.params.get(knob), seed, max(0.0, der - theirs[seed]))


def _by_seed(group: Group) -> dict[Scalar, float]:
    return {trial.params.get(SEED): trial.metrics["der"] for trial in group.done if "der" in trial.metrics}


def _axes(groups: Sequence[Group]) -> list[str]:
    """Return the parameters in which some groups differ."""
    paths = dict.fromkeys(path for group in groups for path in group.params)
    return [path for path in paths if len({_known(group, path) for group in groups}) > 1]


def _pairs(knob: str, chosen: Group, groups: Sequence[Group], axes: Sequence[str]) -> list[Pair]:
    """Return the pairs of a knob that are nearest to the chosen setting: its own, where it has neighbours."""
    others = [path for path in axes if path != knob and not path.startswith(f"{knob}.")]
    lines: dict[tuple[Known, ...], list[Group]] = {}  # settings that are equal in all but the knob
    for group in groups:
        lines.setdefault(tuple(_known(group, path) for path in others), []).append(group)
    at = tuple(_known(chosen, path) for path in others)
    found: dict[int, list[Pair]] = {}
    for held, line in lines.items():
        distance = sum(mine != theirs for mine, theirs in zip(at, held, strict=True))
        for one in line:
            if _known(one, knob) == _known(chosen, knob) and (one is chosen or one.done):
                found.setdefault(distance, []).extend((one, other) for other in _next_to(one, knob, line))
    return next((found[distance] for distance in sorted(found) if found[distance]), [])


def _next_to(one: Group, knob: str, line: Sequence[Group]) -> list[Group]:
    """Return those of a line with the next values of a knob; all others, where they have no order."""
    rest = [group for group in line if _known(group, knob) != _known(one, knob)]
    own = _number(one.params.get(knob))
    if own is None:
        return rest
    numbers = [number for group in rest if (number := _number(group.params.get(knob))) is not None]
    below, above = [n for n in numbers if n < own], [n for n in numbers if n > own]
    near = {None, max(below, default=None), min(above, default=None)}
    return [group for group in rest if _number(group.params.get(knob)) in near]


def _known(group: Group, path: str) -> Known:
    """Return a value so that neither a missing one nor `true` equals another."""
    value = group.params.get(path)
    return path in group.params, isinstance(value, bool), value


def _number(value: Scalar) -> float | None:
    return None if value is None or isinstance(value, bool | str) else float(value)


def _short(knob: str) -> str:
    return knob.rpartition(".")[2]


def names(knobs: frozenset[str]) -> str:
    """Return knobs by their short names."""
    return ", ".join(sorted(map(_short, knobs)))


def stability_note(result: SweepResult, groups: Sequence[Group]) -> list[str]:
    """Return in a line how stable the one defense of a sweep is around its best settings.

    Nothing where no knob of it was moved alone, or for several defenses, which a ranking compares.
    """
    every = contests(groups)
    if len({contest.defense for contest in every}) != 1:
        return []
    picked = {each: each.pick(result.metric, result.mode) for each in every}
    found = stability_of({each: group for each, group in picked.items() if group and group.attack_took})
    score, worst = found.score, found.worst
    if score is None or worst is None:
        return []
    most = f", most with {worst.text(len(every) > 1)} ({worst.drop:.3f})" if worst.drop > 0 else ""
    rest = f"; never moved alone: {names(found.unmoved)}" if found.unmoved else ""
    moved = "when one knob moves to its next value"
    return [f"stability {score:.3f}: der falls by {1 - score:.3f} in mean {moved}{most}{rest}"]

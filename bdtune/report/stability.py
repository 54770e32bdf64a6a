"""How much of a defense's effectiveness is lost around its setting, when one of its knobs moves by one step.

A neighbour of a setting differs from it in one knob of the defense, whose value is the next smaller or the
next larger one that the sweep has with all other settings equal; of a knob without an order, such as a name,
every other value is next. With P_c the pairs of a neighbour n and a seed s on a data set and attack c, and C
the data sets and attacks that have a pair,

    stability = 1 / |C| sum over c of 1 / |P_c| sum over (n, s) in P_c of 1 - max(0, der_cs - der_cns)

where der_cs is that of the setting and der_cns that of its neighbour, for the same seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bdtune.report.contests import contests
from bdtune.report.groups import varying
from bdtune.trials.results import SEED, show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bdtune.report.contests import Contest
    from bdtune.report.groups import Group
    from bdtune.trials.results import Scalar, SweepResult


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
        name = self.knob.rpartition(".")[2]
        return f"{name}={show(self.value)}" + (f" on {self.case}" if several else "")


@dataclass(frozen=True)
class Stability:
    """What moving each knob by one step costs a defense around its settings."""

    drops: tuple[Drop, ...] = ()
    lost: tuple[str, ...] = ()
    """Neighbours that have no result to compare, such as diverged ones."""
    moved: frozenset[str] = frozenset()
    """Dotted paths of the knobs that were moved alone from the setting, wherever they vary."""
    unmoved: frozenset[str] = frozenset()
    """Those that vary, but not with all others held on each data set and attack: what they do is unknown."""

    @property
    def score(self) -> float | None:
        """1 less the mean drop, each data set and attack counting the same; None without a neighbour."""
        by_case: dict[str, list[float]] = {}
        for drop in self.drops:
            by_case.setdefault(drop.case, []).append(drop.drop)
        return 1 - fmean(map(fmean, by_case.values())) if by_case else None

    @property
    def unmoved_names(self) -> list[str]:
        """The short names of knobs that were never moved alone."""
        return sorted(path.rpartition(".")[2] for path in self.unmoved)

    @property
    def worst(self) -> Drop | None:
        """The largest drop; the first of equal ones."""
        return max(self.drops, key=lambda drop: drop.drop, default=None)

    def __add__(self, other: Stability) -> Stability:
        """Return both together, as of two data sets."""
        unmoved = self.unmoved | other.unmoved
        moved = (self.moved | other.moved) - unmoved
        return Stability(self.drops + other.drops, self.lost + other.lost, moved, unmoved)


def stability_of(chosen: Mapping[Contest, Group]) -> Stability:
    """Return the stability of one defense around the setting that was chosen in each of its contests."""
    return sum((_of_contest(contest, group) for contest, group in chosen.items()), Stability())


def _of_contest(contest: Contest, chosen: Group) -> Stability:
    drops: list[Drop] = []
    lost = []
    found = neighbours(chosen, contest.groups)
    for knob, neighbour in found:
        own = list(_drops(contest.case, chosen, knob, neighbour))
        drops += own
        if not own:
            lost.append(f"{knob.rpartition('.')[2]}={show(neighbour.params.get(knob))} on {contest.case}")
    varied = {path for path in varying(contest.groups) if path.startswith("defense.")}
    moved = frozenset(knob for knob, _ in found)
    return Stability(tuple(drops), tuple(lost), moved, frozenset(varied) - moved)


def _drops(case: str, chosen: Group, knob: str, neighbour: Group) -> Iterator[Drop]:
    theirs = _by_seed(neighbour)
    for seed, der in _by_seed(chosen).items():
        if seed in theirs:
            yield Drop(case, knob, neighbour.params.get(knob), seed, max(0.0, der - theirs[seed]))


def _by_seed(group: Group) -> dict[Scalar, float]:
    return {trial.params.get(SEED): trial.metrics["der"] for trial in group.done if "der" in trial.metrics}


def neighbours(chosen: Group, peers: Sequence[Group]) -> list[tuple[str, Group]]:
    """Return the settings one step away from the chosen one, each with the dotted path of the knob."""
    lines: dict[str, list[Group]] = {}
    for peer in peers:
        if (knob := _only_difference(chosen, peer)) is not None:
            lines.setdefault(knob, []).append(peer)
    return [
        (knob, peer)
        for knob in sorted(lines)
        for peer in _next_to(chosen.params.get(knob), knob, lines[knob])
    ]


def _only_difference(one: Group, two: Group) -> str | None:
    """Return the one knob of the defense in which two settings differ, with what it brings along, or None."""
    paths = one.params.keys() | two.params.keys()
    differ = [path for path in paths if _known(one, path) != _known(two, path)]
    knob = min(differ, key=len, default="")
    alone = all(path == knob or path.startswith(f"{knob}.") for path in differ)
    return knob if alone and knob.startswith("defense.") else None


def _known(group: Group, path: str) -> tuple[bool, bool, Scalar]:
    """Return a value so that neither a missing one nor `true` equals another."""
    value = group.params.get(path)
    return path in group.params, isinstance(value, bool), value


def _next_to(value: Scalar, knob: str, others: Sequence[Group]) -> list[Group]:
    """Return those of a knob's other values that are next to one: all, where they have no order."""
    own = _number(value)
    if own is None:
        return list(others)
    numbers = [number for group in others if (number := _number(group.params.get(knob))) is not None]
    below, above = (
        (number for number in numbers if number < own),
        (number for number in numbers if number > own),
    )
    near = {None, max(below, default=None), min(above, default=None)}
    return [group for group in others if _number(group.params.get(knob)) in near]


def _number(value: Scalar) -> float | None:
    return None if value is None or isinstance(value, bool | str) else float(value)


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
    rest = f"; never moved alone from there: {', '.join(found.unmoved_names)}" if found.unmoved else ""
    moved = "when one knob of the best setting moves to its next value"
    return [f"stability {score:.3f}: der falls by {1 - score:.3f} in mean {moved}{most}{rest}"]

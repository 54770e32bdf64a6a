"""How much each setting matters: main effects with the others held, and pairs of settings of a grid."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from bdtune.knobs import short_names
from bdtune.report.groups import Group, rank, varying

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bdtune.trials.results import Scalar

Held = tuple[tuple[int, float, str], ...]
Slices = dict[Held, dict["Scalar", list[Group]]]
Combinations = dict[tuple["Scalar", "Scalar"], float]


@dataclass(frozen=True)
class Level:
    """One value of a setting: mean, least and largest value of each metric over ways to hold the others."""

    value: Scalar
    metrics: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Effect:
    """What a setting does to some metrics."""

    name: str
    levels: tuple[Level, ...]
    slices: int
    """Ways to hold all other settings over which the means are; 0: the others differ too, as in a search."""

    def span(self, metric: str) -> float:
        """Return how far the means of a metric are apart; 0 where the others are not held."""
        means = [level.metrics[metric][0] for level in self.levels if metric in level.metrics]
        return max(means) - min(means) if self.slices and means else 0.0


@dataclass(frozen=True)
class Pair:
    """Two settings whose values were all combined, and a metric's mean for each combination."""

    names: tuple[str, str]
    values: tuple[tuple[Scalar, ...], tuple[Scalar, ...]]
    means: tuple[tuple[float, ...], ...]
    """[values of the first][values of the second]."""
    slices: int

    @property
    def interaction(self) -> float:
        """The largest departure from the sum of the two main effects."""
        rows = [fmean(row) for row in self.means]
        columns = [fmean(column) for column in zip(*self.means, strict=True)]
        whole = fmean(rows)
        return max(
            abs(self.means[i][j] - rows[i] - columns[j] + whole)
            for i, j in itertools.product(range(len(rows)), range(len(columns)))
        )


def effects(groups: Sequence[Group], metrics: Sequence[str], rule: str) -> list[Effect]:
    """Return the effect of each setting that varies, that with the largest on the metric `rule` first."""
    defended = [group for group in groups if not group.is_baseline and group.done]
    axes = varying(defended)
    names = short_names(axes)
    found = [_effect(axis, names[axis], defended, _held((axis,), axes, defended), metrics) for axis in axes]
    return sorted((e for e in found if len(e.levels) > 1), key=lambda effect: -effect.span(rule))


def _held(own: Sequence[str], axes: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Return the settings that are held: all others, but knobs of a plugin that some of its rivals lack.

    Those cannot be held while the plugin changes: a plugin stands for the mean over its own knobs.
    """

    def goes_with(axis: str) -> bool:
        lacking = any(axis not in group.params for group in groups)
        return lacking and any(axis.startswith(f"{plugin}.") for plugin in own)

    return [axis for axis in axes if axis not in own and not goes_with(axis)]


def _effect(
    axis: str, name: str, groups: Sequence[Group], held: Sequence[str], metrics: Sequence[str]
) -> Effect:
    slices = _slices(axis, groups, held)
    most = max((len(own) for own in slices.values()), default=0)
    if most < 2:
        having = sorted((g for g in groups if axis in g.params), key=lambda g: rank(g.params[axis]))
        return Effect(name, tuple(_level(g.params[axis], [[g]], metrics) for g in having), 0)
    widest = [own for own in slices.values() if len(own) == most]
    same = [own for own in widest if own.keys() == widest[0].keys()]
    values = sorted(same[0], key=rank)
    levels = tuple(_level(value, [own[value] for own in same], metrics) for value in values)
    return Effect(name, levels, len(same))


def _slices(axis: str, groups: Sequence[Group], held: Sequence[str]) -> Slices:
    """Return the groups by the values of what is held, then by that of the axis."""
    found: Slices = {}
    for group in groups:
        if axis in group.params:
            own = found.setdefault(tuple(rank(group.params.get(other)) for other in held), {})
            own.setdefault(group.params[axis], []).append(group)
    return found


def _level(value: Scalar, slices: Sequence[Sequence[Group]], metrics: Sequence[str]) -> Level:
    found = {}
    for metric in metrics:
        means = [mean for groups in slices if (mean := _mean(groups, metric)) is not None]
        if means:
            found[metric] = (fmean(means), min(means), max(means))
    return Level(value, found)


def _mean(groups: Sequence[Group], metric: str) -> float | None:
    means = [stat.mean for group in groups if (stat := group.stat(metric))]
    return fmean(means) if means else None


def pairs(groups: Sequence[Group], metric: str) -> list[Pair]:
    """Return the pairs of settings of which a grid has every combination; the least additive one first."""
    defended = [group for group in groups if not group.is_baseline and group.stat(metric)]
    axes = varying(defended)
    names = short_names(axes)
    found = []
    for both in itertools.combinations(axes, 2):
        slices = _combined(both, _held(both, axes, defended), defended, metric)
        pair = _pair((names[both[0]], names[both[1]]), slices)
        found += [pair] if pair else []
    return sorted(found, key=lambda pair: -pair.interaction)


def _combined(
    both: tuple[str, str], held: Sequence[str], groups: Sequence[Group], metric: str
) -> list[Combinations]:
    """Return a metric by the values of two settings, for each way to hold the others."""
    one, two = both
    slices: dict[Held, dict[tuple[Scalar, Scalar], list[Group]]] = {}
    for group in groups:
        if one in group.params and two in group.params:
            own = slices.setdefault(tuple(rank(group.params.get(other)) for other in held), {})
            own.setdefault((group.params[one], group.params[two]), []).append(group)
    means = [{at: _mean(members, metric) for at, members in own.items()} for own in slices.values()]
    return [{at: mean for at, mean in own.items() if mean is not None} for own in means]


def _pair(names: tuple[str, str], slices: Sequence[Combinations]) -> Pair | None:
    """Return the means over the ways to hold the others that have most combinations; None without a grid."""
    full = [own for own in slices if _is_grid(own)]
    if not full:
        return None
    largest = max(full, key=len)
    same = [own for own in full if own.keys() == largest.keys()]
    rows, columns = (tuple(sorted({key[i] for key in largest}, key=rank)) for i in (0, 1))
    means = tuple(tuple(fmean(own[row, column] for own in same) for column in columns) for row in rows)
    return Pair(names, (rows, columns), means, len(same))


def _is_grid(own: Combinations) -> bool:
    rows, columns = ({key[i] for key in own} for i in (0, 1))
    return len(rows) > 1 and len(columns) > 1 and len(own) == len(rows) * len(columns)

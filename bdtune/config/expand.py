"""From a sweep to its trials."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from bdtune.checking import show
from bdtune.config.conditions import Conditions
from bdtune.config.limits import too_many_trials
from bdtune.config.point_problems import SHOWN
from bdtune.config.points import PointReader
from bdtune.config.space import Assignment, Point, Space, crossed
from bdtune.config.trial import TrialSpec, sections_of, spec_to_dict
from bdtune.engine.uncollected import uncollected
from bdtune.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bdtune.config.sweep import SweepSpec


def points(spec: SweepSpec) -> list[TrialSpec]:
    """Return all trials of a finite sweep, seeds innermost; raises `ConfigError` with all that is wrong.

    A sweep with `search` has no such list (`ValueError`): see `preview` and `with_values`.
    """
    if spec.search is not None:
        raise ValueError(f"sweep '{spec.name}' is a search: its trials are drawn, not listed")
    if spec._points is None:
        problems: list[Problem] = []
        spec._points = tuple(expand(space_of(spec), problems.append))
        if problems:
            raise ConfigError(problems)
    return list(spec._points)


def space_of(spec: SweepSpec) -> Space:
    """Return what `expand` needs of a checked sweep."""
    base = spec_to_dict(spec.trial), sections_of(spec.trial)
    return Space(*base, spec.grid, spec.zip, spec.vary, spec.seeds, spec.when, spec.exclude)


def with_values(trial: TrialSpec, values: Mapping[str, Any]) -> TrialSpec:
    """Return a trial with some settings changed, by dotted path; raises `ConfigError` with all problems."""
    problems: list[Problem] = []
    point = tuple(Assignment(path, value, path) for path, value in values.items())
    changed = PointReader(Space(spec_to_dict(trial), sections_of(trial)), problems.append).trial(point)
    if changed is None:
        raise ConfigError(problems)
    return changed[0]


@uncollected()
def expand(
    space: Space, report: Callable[[Problem], None], *, check_data: bool = False, partial: bool = False
) -> list[TrialSpec]:
    """Return the trials of a space; what is wrong is reported once for each value or pair of settings.

    `partial`: that a data set is not there is nothing wrong.
    Entries of `when` and `exclude` that no trial meets, as the command line overrides what they ask for, are
    taken out of the space.
    """
    reader = PointReader(space, report, check_data=check_data, partial=partial)
    factors = list(_factors(space, reader))
    count = math.prod(len(factor) for factor in factors)
    conditions = Conditions(space, reader)
    if problems := too_many_trials(count, "grid" if space.grid else "") or conditions.too_many(count):
        report(problems[0])
        return []
    found: dict[tuple[str, ...], tuple[Point, TrialSpec]] = {}
    twice = count = 0
    for parts in itertools.product(*factors):
        extended = conditions.extended(tuple(itertools.chain.from_iterable(parts)))
        count += math.prod(map(len, extended))
        if problems := too_many_trials(count, "when"):
            report(problems[0])
            return []
        for point in _combined(extended):
            if conditions.excluded(point):
                continue
            trial = reader.trial(point)
            if trial is None:
                continue
            first = found.setdefault(trial[1], (point, trial[0]))
            if first[0] is not point and not reader.reads_wrong_base(point):
                twice += 1
                if twice <= SHOWN:
                    report(_same_trial(first[0], point))
    conditions.report_unmet(report)
    conditions.drop_overridden()
    reader.report_rest()
    if not found and not reader.failed:
        report(Problem("exclude", "expected at least one trial to be left", "none"))
    return [spec for _, spec in found.values()]


def _factors(space: Space, reader: PointReader) -> Iterator[list[Point]]:
    yield from crossed("grid", space.grid)
    for number, group in enumerate(space.zip):
        if not group:  # what it held was wrong
            continue
        label = f"zip[{number}]" if len(space.zip) > 1 else "zip"
        length = len(next(iter(group.values())))
        yield [
            tuple(Assignment(path, values[i], f"{label}.{path}[{i}]") for path, values in group.items())
            for i in range(length)
        ]
    if space.vary:
        varied = itertools.chain.from_iterable(crossed("vary", space.vary))
        yield [(), *(point for point in varied if not reader.is_base(point))]
    if space.seeds:
        yield [(Assignment("seed", seed, f"seeds[{i}]"),) for i, seed in enumerate(space.seeds)]


def _combined(factors: Sequence[Sequence[Point]]) -> Iterator[Point]:
    """Yield every combination of points, each as one."""
    for parts in itertools.product(*factors):
        yield tuple(itertools.chain.from_iterable(parts))


def _same_trial(first: Point, second: Point) -> Problem:
    """Name what two points differ in, although they come to the same."""
    shared = {a.label for a in first} & {a.label for a in second}
    settings, place = [], ""
    for point in (first, second):
        own = [a for a in point if a.label not in shared]
        settings.append(", ".join(f"{a.path}={show(a.value)}" for a in own) or "the base")
        place = own[-1].label if own else place
    return Problem(
        place, "expected every trial once", f"the same one for {settings[0]} and for {settings[1]}"
    )

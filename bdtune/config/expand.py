"""From a sweep to its trials: every point checked, each distinct group of settings read once."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from bdtune.checking import show
from bdtune.config.at_hand import absence
from bdtune.config.document import assign
from bdtune.config.limits import MAX_COMPARISONS, too_many_trials
from bdtune.config.trial import (
    IDENTIFYING,
    PLUGIN_KINDS,
    TRIAL_KEYS,
    TrialSpec,
    build,
    cross_checks,
    parse_section,
    section_key,
    section_params,
    sections_of,
    spec_to_dict,
)
from bdtune.engine.shared import Shared
from bdtune.engine.uncollected import uncollected
from bdtune.errors import ConfigError, Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from bdtune.config.sweep import Axes, SweepSpec, When

_SHOWN = 3  # alike problems that are shown one by one


class Assignment(NamedTuple):
    """One setting of one point, and where its value stands: `grid.defense.beta_nd[2]`."""

    path: str
    value: Any
    label: str

    @property
    def section(self) -> str:
        """The trial's setting that it belongs to: "defense"."""
        return self.path.partition(".")[0]


Point = tuple[Assignment, ...]


def _depth(assignment: Assignment) -> tuple[int, bool]:
    return assignment.path.count("."), not assignment.path.endswith((".name", ".preset"))


@dataclass
class Space:
    """A sweep's base trial, as plain values and as read, and what varies around it.

    `sections` lacks what is wrong in the base; `raw` then holds what is known of it.
    """

    raw: dict[str, Any]
    sections: dict[str, Any]
    grid: Axes = field(default_factory=dict)
    zip: tuple[Axes, ...] = ()
    vary: Axes = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    when: tuple[When, ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    overridden: frozenset[str] = frozenset()
    """Settings that the command line gives: the file's `when` and `exclude` need not fit them."""


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
    conditions = _Conditions(space, reader)
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
                if twice <= _SHOWN:
                    report(_same_trial(first[0], point))
    conditions.report_unmet(report)
    conditions.drop_overridden()
    reader.report_rest()
    if not found and not reader.failed:
        report(Problem("exclude", "expected at least one trial to be left", "none"))
    return [spec for _, spec in found.values()]


def _factors(space: Space, reader: PointReader) -> Iterator[list[Point]]:
    yield from _crossed("grid", space.grid)
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
        varied = itertools.chain.from_iterable(_crossed("vary", space.vary))
        yield [(), *(point for point in varied if not reader.is_base(point))]
    if space.seeds:
        yield [(Assignment("seed", seed, f"seeds[{i}]"),) for i, seed in enumerate(space.seeds)]


def _combined(factors: Sequence[Sequence[Point]]) -> Iterator[Point]:
    """Yield every combination of points, each as one."""
    for parts in itertools.product(*factors):
        yield tuple(itertools.chain.from_iterable(parts))


def _as_param(path: str, value: Any) -> Any:
    return "none" if value is None and path in PLUGIN_KINDS else value


def _crossed(label: str, axes: Axes) -> list[list[Point]]:
    return [
        [(Assignment(path, value, f"{label}.{path}[{i}]"),) for i, value in enumerate(values)]
        for path, values in axes.items()
    ]


def _params(space: Space) -> dict[str, Any]:
    sections = [section_params(key, value) for key, value in space.sections.items()]
    return {path: value for section in sections for path, value in section.items()}


def _same(left: Any, right: Any) -> bool:
    """Compare two settings: 1 and 1.0 are the same, 1 and true are not."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


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


class PointReader:
    """Reads points; each distinct group of settings, data set and attack is checked once."""

    def __init__(
        self,
        space: Space,
        report: Callable[[Problem], None],
        *,
        check_data: bool = False,
        partial: bool = False,
    ) -> None:
        self.space, self.failed = space, False
        self._checks, self._without_files = cross_checks(data=check_data), cross_checks(data=False)
        self._partial, self._absent = partial, dict[tuple[str, str], bool]()
        self._report = report
        self._told: set[Problem] = set()
        self._alike: Counter[tuple[str, ...]] = Counter()
        self._last: dict[tuple[str, ...], Problem] = {}
        self._read: dict[tuple[str, tuple[str, ...]], tuple[Any, str] | None] = {}
        self._params: dict[str, dict[str, Any]] = {}
        self._agreed: dict[tuple[str, ...], bool] = {}
        self._heads = Shared(lambda assignment: assignment.section)

    def is_base(self, point: Point) -> bool:
        """Return whether one setting is the base's, however it is written: 2/255, 1 or 1.0."""
        key = point[0].section
        if key not in self.space.sections:
            return False
        value, problems = self._parse(key, point)
        return not problems and section_key_of(key, value) == section_key_of(key, self.space.sections[key])

    def reads_wrong_base(self, point: Point) -> bool:
        """Return whether a point changes a setting that is wrong in the base: others of it are left out."""
        return any(assignment.section not in self.space.sections for assignment in point)

    def section(self, key: str, mine: Point) -> tuple[Any, str] | None:
        """Return a setting with its hash, given the assignments to it; None, reported, when it is wrong."""
        memo = (key, tuple(a.label for a in mine))
        if memo not in self._read:
            self._read[memo] = self._read_section(key, mine)
        return self._read[memo]

    def _read_section(self, key: str, mine: Point) -> tuple[Any, str] | None:
        if not mine:
            if key not in self.space.sections:
                return None
            return self.space.sections[key], section_key_of(key, self.space.sections[key])
        value, problems = self._parse(key, mine)
        for problem in problems:
            # a wrong base is reported anyway, and what was left out of it may be all that is missed here
            if key in self.space.sections or _causes(problem, mine):
                self.report(problem, self._culprits(problem, key, mine))
        return None if problems else (value, section_key_of(key, value))

    def _parse(self, key: str, mine: Point) -> tuple[Any, list[Problem]]:
        raw = self.space.raw
        # Which plugin it is comes first, then its knobs.
        for assignment in sorted(mine, key=_depth):
            raw = assign(raw, assignment.path, assignment.value)
        return parse_section(key, raw.get(key))

    def _culprits(self, problem: Problem, key: str, mine: Point) -> Point:
        """Return the assignments without which the problem would not be there."""
        for assignment in mine:
            rest = tuple(a for a in mine if a is not assignment)
            if problem in self._parse(key, rest)[1]:
                return self._culprits(problem, key, rest)
        return mine

    def sections(self, point: Point) -> dict[str, tuple[Any, str]]:
        """Return the settings of a point that are right, each with its hash; the others are reported."""
        mine: dict[str, list[Assignment]] = {}
        for assignment in point:
            mine.setdefault(self._heads(assignment), []).append(assignment)
        read = {**self._base, **{key: self.section(key, tuple(own)) for key, own in mine.items()}}
        return {key: value for key, value in read.items() if value is not None}

    @cached_property
    def _base(self) -> dict[str, tuple[Any, str] | None]:
        """The base's settings, in the order of the trial's."""
        return {key: self.section(key, ()) for key in TRIAL_KEYS}

    def trial(self, point: Point) -> tuple[TrialSpec, tuple[str, ...]] | None:
        """Return the trial of a point, and what only equal trials share; None, reported, when it is wrong."""
        found = self.sections(point)
        spec = build({key: value for key, (value, _) in found.items()})
        if not self._agrees(spec, found, point) or len(found) < len(TRIAL_KEYS):
            self.failed = True
            return None
        return spec, tuple([found[name][1] for name in IDENTIFYING])

    def params(self, point: Point) -> dict[str, Any]:
        """Return the settings of a point by dotted path, as far as they can be read."""
        result: dict[str, Any] = {}
        for key in TRIAL_KEYS:
            read = self.section(key, tuple(a for a in point if a.section == key))
            if read is not None:
                params = self._params.get(read[1])
                if params is None:
                    params = self._params[read[1]] = dict(section_params(key, read[0]))
                result |= params
        return result

    def _agrees(self, spec: TrialSpec, found: Mapping[str, tuple[Any, str]], point: Point) -> bool:
        """Check what belongs together, each distinct combination once."""
        good, complete = True, len(found) == len(TRIAL_KEYS)
        for keys, problems_of in self._without_files if self._is_absent(found) else self._checks:
            if not complete and not all(key in found for key in keys):
                continue
            memo = tuple([found[key][1] for key in keys])
            if memo not in self._agreed:
                problems = problems_of(spec)
                for problem in problems:
                    self.report(problem, point)
                self._agreed[memo] = not problems
            good = good and self._agreed[memo]
        return good

    def _is_absent(self, found: Mapping[str, tuple[Any, str]]) -> bool:
        """Return whether the data set is not there, which a partial sweep may do without."""
        if not self._partial or not {"dataset", "data_root"} <= found.keys():
            return False
        (dataset, key), (root, place) = found["dataset"], found["data_root"]
        if (key, place) not in self._absent:
            self._absent[key, place] = absence(dataset, root) is not None
        return self._absent[key, place]

    def report(self, problem: Problem, point: Point) -> None:
        """Report a problem where the value that causes it stands; alike ones only so often."""
        if causes := _causes(problem, point):
            cause = max(causes, key=lambda a: len(a.path))
            label = cause.label.rpartition("[")[0] if problem.about_key else cause.label
            problem = replace(problem, path=label + problem.path[len(cause.path) :])
            if problem.about_key and not problem.hint and any(a.path == cause.section for a in point):
                problem = _hinted(problem, "Axes of one plugin only belong in 'when'")
            self._tell(problem)
            return
        inner = [a for a in point if a.path.startswith(f"{problem.path}.")]
        if not inner:
            self._tell(problem)
            return
        if problem.about_key:
            self._tell(replace(problem, path=inner[0].label.rpartition("[")[0]))
            return
        alike = (problem.path, *(a.path for a in inner))
        hint = f"Here {', '.join(f'{a.path}={show(a.value)}' for a in inner)}"
        hint += "; 'exclude' leaves such points out" if len(inner) > 1 else ""
        problem = _hinted(replace(problem, path=inner[0].label), hint)
        if problem in self._told:
            return
        self._alike[alike] += 1
        self._last[alike] = problem
        if self._alike[alike] <= _SHOWN:
            self._tell(problem)

    def report_rest(self) -> None:
        """Say how many problems were alike the ones shown."""
        for alike, count in self._alike.items():
            if count > _SHOWN:
                last = self._last[alike]
                path = last.path.rpartition("[")[0]
                more = f"the same with {count - _SHOWN} more combinations of {', '.join(alike[1:])}"
                self._tell(Problem(path, more))

    def _tell(self, problem: Problem) -> None:
        if problem not in self._told:
            self._told.add(problem)
            self._report(problem)


def section_key_of(key: str, value: Any) -> str:
    """Return the hash of one setting of a trial, different for different settings of equal value."""
    return f"{key}={section_key(str(value) if key == 'data_root' else value)}"


def _causes(problem: Problem, point: Point) -> list[Assignment]:
    """Return the assignments whose own value, or a part of it, is what is wrong."""
    return [a for a in point if f"{problem.path}.".startswith((f"{a.path}.", f"{a.path}["))]


def _hinted(problem: Problem, hint: str) -> Problem:
    return replace(problem, hint=f"{problem.hint} {hint}".strip())


class _Conditions:
    """The `when` and `exclude` entries of a sweep, and which of them no point met."""

    def __init__(self, space: Space, reader: PointReader) -> None:
        self.space, self.reader = space, reader
        self.met: set[str] = set()
        self.seen: set[str] = set()  # settings that some point has
        self._factors = [_crossed(f"when[{i}].grid", entry.grid) for i, entry in enumerate(space.when)]

    def too_many(self, count: int) -> list[Problem]:
        """Return what is wrong with comparing so many points with all entries."""
        entries = len(self.space.when) + len(self.space.exclude)
        if count * entries <= MAX_COMPARISONS:
            return []
        expected = f"expected at most {MAX_COMPARISONS:,} comparisons of trials with 'when' and 'exclude'"
        got = f"{count:,} trials and {entries:,} entries"
        return [Problem("exclude" if self.space.exclude else "when", expected, got)]

    def extended(self, point: Point) -> list[Sequence[Point]]:
        """Return the point and the axes of all `when` entries that it meets, to be combined."""
        factors: list[Sequence[Point]] = [(point,)]
        for i, entry in enumerate(self.space.when):
            if self._meets(point, entry.condition, f"when[{i}].if"):
                factors += self._factors[i]
        return factors

    def excluded(self, point: Point) -> bool:
        """Return whether an `exclude` entry leaves the point out."""
        met = [self._meets(point, entry, f"exclude[{i}]") for i, entry in enumerate(self.space.exclude)]
        return any(met)

    def _meets(self, point: Point, condition: Mapping[str, Any], label: str) -> bool:
        values: dict[str, Any] = {a.path: a.value for a in point if a.path not in PLUGIN_KINDS}
        if not condition.keys() <= values.keys():
            values = {**self.reader.params(point), **values}
        self.seen |= values.keys() & condition.keys()
        for path, wanted in condition.items():
            options = wanted if isinstance(wanted, list | tuple) else (wanted,)
            if path not in values or not any(_same(values[path], _as_param(path, o)) for o in options):
                return False
        self.met.add(label)
        return True

    def report_unmet(self, report: Callable[[Problem], None]) -> None:
        """Report entries that no point meets: a wrong name or value, most likely."""
        if self.reader.failed:
            return
        entries = [(f"exclude[{i}]", entry) for i, entry in enumerate(self.space.exclude)]
        entries += [(f"when[{i}].if", entry.condition) for i, entry in enumerate(self.space.when)]
        for label, condition in entries:
            if self._overridden(condition):
                continue
            unknown = [path for path in condition if path not in self.seen]
            for path in unknown:
                hint = nearest(path, {**_params(self.space), **dict.fromkeys(self.seen)})
                report(Problem(f"{label}.{path}", "expected a setting of the trials", show(path), hint=hint))
            if not unknown and label not in self.met:
                report(Problem(label, "expected settings that some trial has", show(dict(condition))))

    def drop_overridden(self) -> None:
        """Take out of the space the entries that no point meets because of the command line."""

        def kept(label: str, condition: Mapping[str, Any]) -> bool:
            return label in self.met or not self._overridden(condition)

        space = self.space
        space.when = tuple(w for i, w in enumerate(space.when) if kept(f"when[{i}].if", w.condition))
        space.exclude = tuple(e for i, e in enumerate(space.exclude) if kept(f"exclude[{i}]", e))

    def _overridden(self, condition: Mapping[str, Any]) -> bool:
        """Return whether the command line gives a setting of a condition, or the plugin whose knob it is."""
        given = {plugin_or_knob(path) for path in self.space.overridden}
        return any(f"{path}.".startswith(tuple(f"{each}." for each in given)) for path in condition)


def plugin_or_knob(path: str) -> str:
    """Return a setting's path; that of a plugin's name or preset is the plugin's own."""
    head, _, rest = path.partition(".")
    return head if rest in ("name", "preset") and head in PLUGIN_KINDS else path

"""Points of a sweep read into trials: each distinct group of settings is checked once."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from bdtune.config.at_hand import absence
from bdtune.config.document import assign
from bdtune.config.point_problems import PointProblems, causes
from bdtune.config.trial import (
    IDENTIFYING,
    TRIAL_KEYS,
    TrialSpec,
    build,
    cross_checks,
    parse_section,
    section_key,
    section_params,
)
from bdtune.engine.shared import Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bdtune.config.space import Assignment, Point, Space
    from bdtune.errors import Problem


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
        self._problems = PointProblems(report)
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
            if key in self.space.sections or causes(problem, mine):
                self._problems.report(problem, self._culprits(problem, key, mine))
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
                    self._problems.report(problem, point)
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

    def report_rest(self) -> None:
        """Say how many problems were alike the ones shown."""
        self._problems.report_rest()


def section_key_of(key: str, value: Any) -> str:
    """Return the hash of one setting of a trial, different for different settings of equal value."""
    return f"{key}={section_key(str(value) if key == 'data_root' else value)}"


def _depth(assignment: Assignment) -> tuple[int, bool]:
    return assignment.path.count("."), not assignment.path.endswith((".name", ".preset"))

"""What is wrong with points, said where the value that causes it stands."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from bdtune.checking import show
from bdtune.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.config.space import Assignment, Point

SHOWN = 3
"""Alike problems that are shown one by one."""


class PointProblems:
    """Reports what is wrong with points: each problem once, alike ones only so often."""

    def __init__(self, report: Callable[[Problem], None]) -> None:
        self._report = report
        self._told: set[Problem] = set()
        self._alike: Counter[tuple[str, ...]] = Counter()
        self._last: dict[tuple[str, ...], Problem] = {}

    def report(self, problem: Problem, point: Point) -> None:
        """Report a problem where the value that causes it stands; alike ones only so often."""
        if found := causes(problem, point):
            cause = max(found, key=lambda a: len(a.path))
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
        if self._alike[alike] <= SHOWN:
            self._tell(problem)

    def report_rest(self) -> None:
        """Say how many problems were alike the ones shown."""
        for alike, count in self._alike.items():
            if count > SHOWN:
                last = self._last[alike]
                path = last.path.rpartition("[")[0]
                more = f"the same with {count - SHOWN} more combinations of {', '.join(alike[1:])}"
                self._tell(Problem(path, more))

    def _tell(self, problem: Problem) -> None:
        if problem not in self._told:
            self._told.add(problem)
            self._report(problem)


def causes(problem: Problem, point: Point) -> list[Assignment]:
    """Return the assignments whose own value, or a part of it, is what is wrong."""
    return [a for a in point if f"{problem.path}.".startswith((f"{a.path}.", f"{a.path}["))]


def _hinted(problem: Problem, hint: str) -> Problem:
    return replace(problem, hint=f"{problem.hint} {hint}".strip())

"""How large a sweep may be: each limit is checked before anything is expanded, so that a plan ends soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bdtune.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_TRIALS = 100_000
"""Of a finite sweep: to plan so many takes about half a minute and 1 GB."""
MAX_AXES = 50
"""Settings that one sweep varies."""
MAX_CHOICES = 1_000
"""Values of one setting of a search."""
MAX_CONDITIONS = 1_000
"""Entries of `when` and `exclude` together."""
MAX_COMPARISONS = 2_000_000
"""Of trials with the entries of `when` and `exclude`."""
MAX_WORDS = 1_000
"""Settings on the command line."""
MAX_RANGE = 10_000
"""Values that a `range(...)` may stand for."""


def too_many_axes(sections: Mapping[str, Any]) -> list[Problem]:
    """Return what is wrong with the numbers of axes and conditions of a sweep's sections, as written."""
    when = [entry.get("grid") for entry in _list(sections.get("when")) if isinstance(entry, dict)]
    groups = [sections.get("grid"), sections.get("vary"), *_list(sections.get("zip")), *when]
    search = sections.get("search")
    groups += [search.get("space")] if isinstance(search, dict) else []
    axes = sum(len(group) for group in groups if isinstance(group, dict))
    conditions = len(_list(sections.get("when"))) + len(_list(sections.get("exclude")))
    found = []
    if axes > MAX_AXES:
        found.append(Problem("", f"expected at most {MAX_AXES} settings that vary", f"{axes:,}"))
    if conditions > MAX_CONDITIONS:
        expected = f"expected at most {MAX_CONDITIONS:,} entries of 'when' and 'exclude'"
        found.append(Problem("", expected, f"{conditions:,}"))
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def too_many_trials(count: int, where: str) -> list[Problem]:
    """Return what is wrong with a number of trials; `where` is the section that asks for them."""
    if count <= MAX_TRIALS:
        return []
    got = f"{count:,}" if count < 10**15 else "far more"  # Python refuses to print thousands of digits
    return [Problem(where, f"expected at most {MAX_TRIALS:,} trials", got)]

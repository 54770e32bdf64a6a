"""Errors: one root, few leaves. A user's mistake is a `UserError` and never shows a traceback."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class BdtuneError(Exception):
    """Root of all errors that bdtune raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in what a user wrote.

    `where` is `file:line` (or the command line's word), `path` the dotted path.
    """

    path: str
    expected: str
    got: str = ""
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = ": ".join(part for part in (self.where, self.path) if part)
        got = f", got {self.got}" if self.got else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{place}: {self.expected}{got}{hint}" if place else f"{self.expected}{got}{hint}"


class UserError(BdtuneError):
    """Something the user can mend; the command line prints its problems and exits with 2."""

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(path="", expected=problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(UserError):
    """A configuration file or override that cannot be used."""


class DataError(UserError):
    """A data set that is missing, incomplete or not what its name promises."""


class StoreError(BdtuneError):
    """The store could not be read or written."""


class Diverged(BdtuneError):  # noqa: N818 - a state that a trial ends in
    """A loss or weight became non-finite; the trial ends as "diverged" and is not retried."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return "Did you mean 'x'?" for the closest of `choices`, or "" when none is close."""
    close = get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else ""

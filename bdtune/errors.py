"""Errors: one root, few leaves. A user's mistake is a `UserError` and never shows a traceback."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


SHOWN = 50
"""Problems that are printed at once."""
MOST_PROBLEMS = 200
"""Problems after which a reader stops to look for more."""
LONGEST_NAME = 200
"""Characters of a name; no longer one has a nearest name."""
GOES_ON = "The same command goes on from here"
"""Said where a sweep ends early, and it is nobody's mistake."""


class BdtuneError(Exception):
    """Root of all errors that bdtune raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in what a user wrote.

    `path` is dotted; `expected` starts with "expected". `where` is a place in a data set's files, until the
    reader of a document puts `file:line` (or the command line's word) there.
    """

    path: str
    expected: str
    got: str = ""
    where: str = ""
    hint: str = ""
    about_key: bool = False
    """Whether the name itself is wrong, not its value."""

    def __str__(self) -> str:
        got = f", got {self.got}" if self.got else ""
        hint = f". {self.hint}" if self.hint else ""
        return ": ".join(filter(None, (self.where, self.path, self.expected))) + got + hint

    def under(self, parent: str) -> Problem:
        """Return the same problem of a value that lies in `parent`."""
        return replace(self, path=join(parent, self.path))

    def at(self, where: str) -> Problem:
        """Return the problem with `file:line`; the place it had becomes part of what was got."""
        return replace(self, where=where, got=f"{self.got} in {self.where}" if self.where else self.got)


def join(parent: str, path: str) -> str:
    """Join two dotted paths; either may be empty, and `path` may start with `[`."""
    return parent + path if not parent or not path or path.startswith("[") else f"{parent}.{path}"


class UserError(BdtuneError):
    """Something the user can mend; the command line prints its problems and exits with 2."""

    def __init__(self, problems: str | Problem | Sequence[Problem]) -> None:
        if isinstance(problems, str):
            problems = Problem(path="", expected=problems)
        if isinstance(problems, Problem):
            problems = [problems]
        self.problems: tuple[Problem, ...] = tuple(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """Return one line per problem: the first fifty, then how many more there are."""
        rest = len(self.problems) - SHOWN
        least = "at least " if len(self.problems) >= MOST_PROBLEMS else ""
        more = [f"and {least}{rest} more problem{'' if rest == 1 else 's'}"] if rest > 0 else []
        return [*(str(problem) for problem in self.problems[:SHOWN]), *more]


class ConfigError(UserError):
    """A configuration file or override that cannot be used."""


def problems_of(read: Callable[..., object], *args: object) -> list[Problem]:
    """Return the problems of a `ConfigError` that `read(*args)` raises; none where it raises none."""
    try:
        read(*args)
    except ConfigError as error:
        return list(error.problems)
    return []


class DataError(UserError):
    """A data set that is missing, incomplete or not what its name promises."""


class StoreError(BdtuneError):
    """The store could not be read or written."""


class OtherBitsError(BdtuneError):
    """What was dropped from the store and computed again is not what it was."""


class OutageError(BdtuneError):
    """Nothing is wrong with the work, but it cannot go on for now: the same command continues later."""


class DeviceFullError(BdtuneError):
    """A device has too little memory for a training; others, and other trials, may have enough."""


class Diverged(BdtuneError):  # noqa: N818 - a state that a trial ends in
    """A loss or weight became non-finite; the trial ends as "diverged" and is not retried."""


def nearest(name: object, choices: Iterable[Any]) -> str:
    """Return "Did you mean 'x'?" for the closest of `choices`, or "" when none is close."""
    return _nearest(str(name), tuple(map(str, choices))) if len(str(name)) <= LONGEST_NAME else ""


@lru_cache(maxsize=4096)
def _nearest(name: str, choices: tuple[str, ...]) -> str:
    close = get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else ""

"""The trials that a campaign's budget leaves out: decided when it starts, and kept for the same command.

A start that goes on with a campaign finds in the store what the ones before computed. It must not spend the
budget again on what was left out, so the decision is written down, with what it was about.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from bdtune.engine.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FILE = "left_out.json"


@dataclass(frozen=True)
class LeftOut:
    """What does not fit a budget."""

    trials: Mapping[str, str] = field(default_factory=dict)
    """Settings in words by id."""
    baselines: tuple[str, ...] = ()
    """Ids of undefended models that only such trials are compared with."""

    def __bool__(self) -> bool:
        return bool(self.trials)

    @property
    def ids(self) -> Iterator[str]:
        """Trials and baselines."""
        yield from self.trials
        yield from self.baselines

    def lines(self, most: int = 10) -> list[str]:
        """Return the lines that name them."""
        if not self.trials:
            return []
        count, named = len(self.trials), list(self.trials.values())[:most]
        more = [f"  and {count - most} more"] if count > most else []
        trials = "1 trial left out, which does" if count == 1 else f"{count} trials left out, which do"
        return [f"{trials} not fit the budget:", *(f"  {each}" for each in named), *more]

    def write(self, folder: Path, about: str) -> None:
        """Write it down in a campaign's folder; `about` is a key of all that it follows from."""
        value = {"about": about, **asdict(self)}
        replace_file(folder / FILE, json.dumps(value, indent=1).encode())


def read(folder: Path, about: str | None = None) -> LeftOut | None:
    """Return what was written down; None where nothing was, or it was about something else."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        value: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if about in (None, value["about"]):
            return LeftOut(dict(value["trials"]), tuple(value["baselines"]))
    return None

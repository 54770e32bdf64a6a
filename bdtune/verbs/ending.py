"""How a run of a sweep or of a campaign ends: its exit status, and the lines that say what comes next."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Protocol

from bdtune.errors import GOES_ON

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bdtune.trials.results import TrialResult

MOST_NAMED = 4
"""Pictures that are named one by one."""

MANY_FORMS = 4
"""Files of one table that are named together: `table.*`."""


class Ended(Protocol):
    """What a run came to."""

    @property
    def exit_code(self) -> int: ...

    @property
    def interrupted(self) -> bool: ...

    @property
    def given_up(self) -> str | None: ...

    @property
    def tracking(self) -> str: ...


def exit_code(given_up: str | None, trials: Iterable[TrialResult], *, interrupted: bool) -> int:
    """Return 0 when all is done, 1 when some were given up, 3 when some failed, 130 when interrupted."""
    if given_up:
        return 1
    if interrupted:
        return 130
    return 3 if any(trial.status in ("failed", "diverged") for trial in trials) else 0


def closing_lines(
    ended: Ended, written: Sequence[Path], suggestions: Sequence[str], out: Path | None
) -> list[str]:
    """Return what was written where, what MLflow has, and which command is next.

    `suggestions`: commands for a run that is done, to which the run directory `out` is added if the command
    line gave it.
    """
    where = f" --out {shlex.quote(str(out))}" if out else ""
    if ended.given_up:
        after = f"error: {ended.given_up}\n{GOES_ON}"
    elif ended.interrupted:
        after = "interrupted; the same command goes on from here"
    elif ended.exit_code:
        after = "next: mend what failed, then run the same command with --retry-failed"
    else:
        after = "next: " + ", or ".join(f"{command}{where}" for command in suggestions)
    return [*_files(written), *filter(None, [ended.tracking]), after]


def _files(written: Sequence[Path]) -> list[str]:
    """Return the line that names the files of a folder; of many pictures their number, of many forms none."""
    forms = Counter(path.stem for path in written)
    names = [f"{path.stem}.*" if forms[path.stem] >= MANY_FORMS else path.name for path in written]
    names = list(dict.fromkeys(names))
    pictures = [name for name in names if name.endswith(".png")]
    if len(pictures) > MOST_NAMED:  # one or two for each attack
        names = [name for name in names if name not in pictures] + [f"{len(pictures)} pictures (*.png)"]
    return [f"written to {written[0].parent}: {', '.join(names)}"] if names else []

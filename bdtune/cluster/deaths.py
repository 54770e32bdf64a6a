"""Trials whose process died from outside, or whose node lost the store: tried again, until it looks hopeless.

The pause before grows.

Such a death is nobody's result: nothing is recorded of it, and the same command goes on from the trial's last
checkpoint.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from bdtune.engine.ready_queue import Job

PAUSES_S = (0.0, 5.0, 15.0, 45.0)
"""Before a stage is tried again after the first, second, ... death in it in a row; then it is given up."""
MOST_IN_A_ROW = 12
"""Deaths of any trials, none having ended in between, after which the whole sweep is given up for now."""
STEADY_S = 300.0
"""After a trial that ran for so long before it died, deaths are counted anew."""
KERNEL_COUNTS = Path("/proc/vmstat")


@dataclass(frozen=True)
class Pause:
    """A trial that waits to be tried again."""

    due: float
    """On the monotonic clock."""
    job: Job


class Deaths:
    """The deaths of one run of a sweep."""

    def __init__(self) -> None:
        self.lost: set[str] = set()
        """Trials that are given up for now."""
        self._cut_off: dict[str, str] = {}  # why trials were not able to reach the store, by trial
        self._in_stage: Counter[str | None] = Counter()  # by key
        self._in_a_row = 0
        self._waiting: list[Pause] = []
        self._out_of_memory = kernel_kills()

    def add(self, job: Job, key: str | None, ran_s: float, cut_off: str | None = None) -> float | None:
        """Note that a trial's process died in a stage, after so many seconds of the trial.

        `cut_off`: it did not die, but could not reach the store, for this reason.
        Returns the pause until it is to be tried again, or None: it is given up for now.
        """
        if ran_s > STEADY_S:
            self._in_stage[key] = self._in_a_row = 0
        self._in_stage[key] += 1
        self._in_a_row += 1
        self._cut_off.pop(job.id, None)
        if cut_off is not None:
            self._cut_off[job.id] = cut_off
        if self._in_stage[key] > len(PAUSES_S) or self.hopeless:
            self.lost.add(job.id)
            return None
        pause = PAUSES_S[self._in_stage[key] - 1]
        self._waiting.append(Pause(time.monotonic() + pause, job))
        return pause

    def survived(self) -> None:
        """Note that a trial ended by itself, in whatever way: the machine is not hopeless."""
        self._in_a_row = 0

    @property
    def hopeless(self) -> bool:
        """Whether trials die without one that ends."""
        return self._in_a_row >= MOST_IN_A_ROW

    @property
    def waiting(self) -> int:
        """How many trials are to be tried again."""
        return 0 if self.hopeless else len(self._waiting)

    def due(self) -> list[Job]:
        """Return the trials whose pause is over."""
        now = time.monotonic()
        found = [pause.job for pause in self._waiting if pause.due <= now]
        self._waiting = [pause for pause in self._waiting if pause.due > now]
        return found

    def sleep(self) -> None:
        """Sleep until the next pause is over."""
        time.sleep(max(0.0, min(pause.due for pause in self._waiting) - time.monotonic()))

    def suspicion(self) -> str | None:
        """Return why trials are given up, in words; None where none is."""
        if not self.lost:
            return None
        apart = sorted(self.lost & self._cut_off.keys())
        if apart:
            return f"{_named(apart)} could not reach the store again and again: {self._cut_off[apart[-1]]}"
        died = f"the processes of {_named(sorted(self.lost))} died again and again"
        kernel = kernel_kills()
        if kernel is not None and self._out_of_memory is not None and kernel > self._out_of_memory:
            count = kernel - self._out_of_memory
            cause = f"this machine's kernel killed {count} process{'es' * (count > 1)} for want of memory"
        else:
            free = psutil.virtual_memory().available / 2**30
            cause = (
                f"most often for want of memory ({free:.1f} GiB are free now), or by a batch system's limit"
            )
        return f"{died}; {cause}. Lower --concurrency or the batch size, or raise resources"


def _named(trials: list[str]) -> str:
    """Return how many trials, and the first three: "4 trials (a, b, c, ...)"."""
    more = ", ..." if len(trials) > 3 else ""
    return f"{len(trials)} trial{'s' * (len(trials) > 1)} ({', '.join(trials[:3])}{more})"


def kernel_kills() -> int | None:
    """Return how many processes this machine's kernel has killed for want of memory since it was started.

    None where the kernel does not say.
    """
    try:
        counts = dict(line.split() for line in KERNEL_COUNTS.read_text().splitlines())
    except OSError:
        return None
    return int(counts["oom_kill"]) if "oom_kill" in counts else None

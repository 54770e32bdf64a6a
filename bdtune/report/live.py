"""Progress of a sweep while it runs: a live display on a terminal or in a notebook, else plain lines."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from bdtune.plugins.metric import HEADLINE
from bdtune.report.table import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping
    from types import TracebackType
    from typing import Self

    from rich.console import Group as RichGroup
    from rich.live import Live

    from bdtune.trials.results import TrialResult

REFRESHES_PER_S = 4
LINE_EVERY_S = 1.0  # plain lines: a log of 10,000 trials should stay readable; failures are always printed
ALIVE_EVERY_S = 60.0  # after so long without a line, one says what runs
ESTIMATE_EVERY_S = 2.0  # and at most a twentieth of the time
MOST_RUNNING = 8
BAD = ("failed", "diverged")


@dataclass
class Running:
    """What one trial is doing."""

    stage: str
    epoch: int = 0
    epochs: int = 0
    since: float = 0.0

    def __str__(self) -> str:
        return f"{self.stage} {self.epoch}/{self.epochs}" if self.epochs else self.stage


class Progress:
    """Tells of a sweep's progress on standard error.

    Call `planned` once, `stage` whenever a trial enters a stage or ends an epoch, `held` when the number of
    trials that wait for others changes, `trial_done` for each trial, `close` at the end (or use `with`).
    Calls may come from any thread.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        name: Callable[[str], str] = str,
    ) -> None:
        """`name` says what people call a trial."""
        self.name = name
        self.estimate: Callable[[Container[str], Mapping[str, Running], float], float | None] | None = None
        """Of the ids of trials that ended, what others are doing, and the time: the seconds that are left."""
        self._ended: set[str] = set()
        self._remarks: set[str] = set()
        self._estimated: tuple[float, float | None] = (float("-inf"), None)  # when, and the seconds left then
        self._look_again = 0.0
        self.stream = stream or sys.stderr
        self.quiet = quiet
        self._clock = clock
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._lives = not quiet and (self.stream.isatty() or (stream is None and _in_notebook()))
        self.trials = 0
        self.predicted: float | None = None
        self.running: dict[str, Running] = {}
        self.counts: Counter[str] = Counter()
        self.waiting = 0
        self._spent = 0.0  # seconds in stages that have ended, here and now
        self._answered = 0  # trials that ended without a stage here: the store had them
        self._started = clock()
        self._last_line = float("-inf")

    # ---------------------------------------------------------------------------------------------- events

    def planned(self, trials: int, *, unique: int = 0, cached: int = 0, seconds: float | None = None) -> None:
        """Say what is to come: trials, unique and stored stages, predicted stage-seconds where known."""
        self.trials, self.predicted = trials, seconds
        self._started = self._clock()
        length = f", about {duration(seconds)} of computing" if seconds else ""
        self.message(f"{trials} trials, {unique} stages, {cached} of them in the store{length}")
        if self._lives and self._live is None:
            self._live = self._open()

    def stage(self, trial: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """Note that a trial is in a stage, after so many of its epochs."""
        with self._lock:
            known = self.running.get(trial)
            if known is None or known.stage != stage:
                self._leave(known)
            since = known.since if known and known.stage == stage else self._clock()
            self.running[trial] = Running(stage, epoch, epochs, since)
        if self._clock() - max(self._last_line, self._started) >= ALIVE_EVERY_S:
            self._line(
                "; ".join(f"{self.name(trial)}: {state}" for trial, state in list(self.running.items()))
            )

    def remarked(self, trial: str, stage: str, text: str) -> None:
        """Print what a trial's stage has to say, once."""
        line = f"{self._called(trial)}: {stage}: {text}"
        if line not in self._remarks:
            self._remarks.add(line)
            self.message(line)

    def held(self, count: int) -> None:
        """Note how many trials wait for a stage that another one computes."""
        self.waiting = count

    def trial_done(self, result: TrialResult) -> None:
        """Note that a trial ended."""
        with self._lock:
            self._answered += result.id not in self.running
            self._leave(self.running.pop(result.id, None))
            self.counts[result.status] += 1
            self._ended.add(result.id)
            self._look_again = 0.0
        if result.status in BAD:
            self.message(f"{result.status} {self._called(result.id)}: {_last(result.error)}", always=True)
        elif self._clock() - self._last_line >= LINE_EVERY_S:
            self._line(f"{self.name(result.id)}: {_numbers(result)}")

    def _called(self, trial: str) -> str:
        """Return a trial's name with its id, by which its files go."""
        name = self.name(trial)
        return trial if name == trial else f"{name} ({trial})"

    def _leave(self, state: Running | None) -> None:
        self._spent += self._clock() - state.since if state else 0.0

    def _line(self, news: str) -> None:
        """Print the counts and something new, where there is no live display."""
        if self._live is None and not self.quiet:
            self._last_line = self._clock()
            self.message(f"{self.summary()}; {news}")

    def message(self, text: str, *, always: bool = False) -> None:
        """Print a line, above the live display if there is one; when quiet only the `always` ones."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        elif always or not self.quiet:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Take the live display away and leave one line."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
        if self.trials and not self.quiet:
            self.message(f"{self.summary(final=True)} in {duration(self._clock() - self._started)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------- numbers

    @property
    def ended(self) -> int:
        """Trials that ended, however."""
        return self.counts.total()

    def remaining_s(self) -> float | None:
        """Return an estimate of the seconds that remain, None while there is nothing to judge by.

        Without an `estimate`: by the part of the predicted stage-seconds, or of the trials, that is done.
        """
        if self.estimate is not None and (left := self._looked()) is not None:
            return left
        elapsed = self._clock() - self._started
        if self.predicted:
            part = (self._spent + self._in_progress()) / self.predicted
        else:
            part = (self.ended - self._answered) / max(1, self.trials - self._answered)
        if part < 0.02 or elapsed <= 0:  # the first few per cent say little
            return None
        return elapsed * (1.0 - min(part, 0.99)) / min(part, 0.99)

    def _looked(self) -> float | None:
        """Return the last estimate less the time since; it is made anew every now and then."""
        now = self._clock()
        if now >= self._look_again and self.estimate is not None:
            with self._lock:
                ended, running = frozenset(self._ended), dict(self.running)
            self._estimated = (now, self.estimate(ended, running, now))
            took = self._clock() - now
            self._look_again = now + max(ESTIMATE_EVERY_S, 20 * took)
        at, left = self._estimated
        return None if left is None else max(1.0, left - (now - at))

    def _in_progress(self) -> float:
        now = self._clock()
        return sum(now - running.since for running in list(self.running.values()))

    def summary(self, *, final: bool = False) -> str:
        """Return one line of counts: "12/40 done, 3 running, 5 held, 1 failed, about 2 min 5 s left"."""
        failed = sum(self.counts[status] for status in BAD)
        parts = [f"{self.ended}/{self.trials} trials"]
        if failed:
            parts.append(f"{failed} failed")
        if self.counts["stopped"]:
            parts.append(f"{self.counts['stopped']} stopped early")
        if not final:
            waits = [(len(self.running), "running"), (self.waiting, "held back")]
            parts += [f"{count} {word}" for count, word in waits if count]
            left = self.remaining_s()
            parts += [f"about {duration(left)} left"] if left is not None and self.ended < self.trials else []
        return ", ".join(parts)

    # --------------------------------------------------------------------------------------------- terminal

    def _open(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        from bdtune.report.notebook import NotebookLive

        on_terminal = self.stream.isatty()
        live = (Live if on_terminal else NotebookLive)(
            get_renderable=self._render,
            console=Console(file=self.stream, force_jupyter=False),
            refresh_per_second=REFRESHES_PER_S if on_terminal else 1,
            transient=on_terminal,
        )
        live.start()
        return live

    def _render(self) -> RichGroup:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            running = list(self.running.items())
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self.trials), completed=self.ended, width=20)
        head.add_row(bar, Text(self.summary(), style="red" if any(self.counts[s] for s in BAD) else ""))
        rows = Table.grid(padding=(0, 2))
        for _ in range(4):
            rows.add_column(no_wrap=True, overflow="ellipsis")
        for trial, state in running[:MOST_RUNNING]:
            epochs = f"epoch {state.epoch}/{state.epochs}" if state.epochs else ""
            length = duration(self._clock() - state.since)
            rows.add_row(Text(state.stage), Text(epochs), Text(length, style="dim"), Text(self.name(trial)))
        more = len(running) - MOST_RUNNING
        return Group(head, rows, *([Text(f"and {more} more", style="dim")] if more > 0 else []))


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False  # rich takes a moment to load
    from bdtune.report.notebook import in_notebook

    return in_notebook()


def _numbers(result: TrialResult) -> str:
    shown = [f"{name} {result.metrics[name]:.3f}" for name in HEADLINE if name in result.metrics]
    return " ".join([result.status, *shown])


def _last(error: str | None) -> str:
    return (error or "no message").strip().splitlines()[-1]

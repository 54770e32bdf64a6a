"""Progress of stages that are computed one after the other: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, TextIO

from bdtune.report.table import duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from rich.progress import Progress, TaskID

    from bdtune.engine.execute import Event
    from bdtune.engine.node import Node

LINE_EVERY_S = 15.0


class StageProgress:
    """Tells on standard error what an executor does; give `event` to its `compute`, and use `with`."""

    def __init__(self, *, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream or sys.stderr
        self._clock = clock
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last_line = 0.0
        self._before: dict[str, int] = {}  # epochs that an earlier run had done
        self._awaited = ""

    def event(self, event: Event) -> None:
        """Show an event of a walk; stages that take no time to speak of are left out."""
        if event.what == "waiting":
            self._wait(event)
        elif self._bars is not None:
            self._move_bar(event)
        else:
            self._print(event)

    def _wait(self, event: Event) -> None:
        if self._awaited != event.key:
            self._awaited = event.key
            self._say(f"{event.node.name}: another process is computing it, waiting")

    def _print(self, event: Event) -> None:
        node, now = event.node, self._clock()
        if event.what == "started" and node.stage.kind == "train":
            self._last_line = now
            self._say(f"computing {described(node)}")
        elif event.what == "tick" and event.tick:
            done, total = event.tick.epoch, event.tick.epochs
            here = done - self._before.setdefault(event.key, done - 1)
            if done < total and now - self._last_line >= LINE_EVERY_S:
                self._last_line = now
                left = event.seconds * (total - done) / max(here, 1)
                self._say(f"{node.name}: {done} of {total}, about {duration(left)} left")
        elif event.what == "computed" and node.stage.kind == "train":
            self._say(f"{node.name}: done in {duration(event.seconds)}")

    def _move_bar(self, event: Event) -> None:
        assert self._bars is not None
        node = event.node
        if node.stage.kind != "train":
            return
        total = max(1, node.stage.length())
        if event.key not in self._tasks:
            self._tasks[event.key] = self._bars.add_task(node.name, total=total)
        done = event.tick.epoch if event.tick else total if event.what == "computed" else 0
        self._bars.update(self._tasks[event.key], completed=done)

    def _say(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def __enter__(self) -> Self:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), console=Console(file=self.stream))
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            bars, self._bars = self._bars, None
            bars.stop()


def described(node: Node) -> str:
    """Return a stage's name and how long it is: "robust_surrogate (100 epochs)"."""
    length = node.stage.length()
    unit = "epochs" if "epochs" in type(node.stage).model_fields else "rounds"
    return f"{node.name} ({length} {unit})" if length > 1 else node.name

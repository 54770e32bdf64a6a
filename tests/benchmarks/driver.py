"""What a trial costs in the driver, with few and with many trials running; nothing is computed, no Ray.

    python -m tests.benchmarks.driver [--trials 10000] [--running 2 80 800] [--ends 400]

The real driver and its queue take in a grid of GSSD and release its trials; a made-up worker leaves the
results of their stages in the store, one stage of one running trial at a time, as GPUs would. Measured is the
driver alone, over the next so many ends of trials once so many run: processor time, files opened (found or
not), bytes read and written. "derived" are the derived stages that the driver computes, counted apart.
"taken in" is what each trial costs before any runs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.benchmarks.engine import Nobody
from tests.benchmarks.faked import Opens, Worker, faked_sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.cluster.driver import Driver


@dataclass
class Row:
    """What was seen with so many trials running."""

    running: int
    ends: int = 0
    settled: int = 0
    """Trials that ended meanwhile without having run: the store answered them."""
    ms: float = 0.0
    """Of the processor for each trial that ended, without derived stages."""
    derived_ms: float = 0.0
    opens: float = 0.0
    read: float = 0.0
    written: float = 0.0
    """Bytes."""
    idle_ms: float = 0.0
    """Of a question for a trial when all that wait are better held back."""
    taken_in_ms: float = 0.0
    peak_mb: float = 0.0


@dataclass
class Meter:
    """What the driver used so far."""

    opens: Opens
    seconds: float = 0.0
    derived: float = 0.0
    read: int = 0
    written: int = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Count what happens in the block."""
        before, started = _moved(), time.process_time()
        self.opens.on = True
        try:
            yield
        finally:
            self.opens.on = False
            self.seconds += time.process_time() - started
            after = _moved()
            self.read, self.written = self.read + after[0] - before[0], self.written + after[1] - before[1]


def _moved() -> tuple[int, int]:
    """Return the bytes that this process has read and written."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["rchar"]), int(counts["wchar"])


class Bench:
    """A driver, and a worker for all trials that it releases."""

    def __init__(self, trials: int, running: int, folder: Path, opens: Opens) -> None:
        from bdtune.cluster.driver import Driver
        from bdtune.cluster.sweep import make_ledger
        from bdtune.cluster.trial_source import make_source
        from bdtune.engine.store import Store

        spec = faked_sweep(trials, folder)
        ledger, executor = make_ledger(spec, Store(folder / "store"))
        _, other = make_ledger(spec, Store(folder / "store"))
        self.meter, self.slots, self.random = Meter(opens), running, random.Random(0)
        self._time_derived(executor)
        data = spec.trial.dataset
        self.worker = Worker(other, data.labels("train", None))
        (folder / "sweep").mkdir()
        self.driver: Driver = Driver(
            spec, ledger, executor, make_source(spec, folder), Nobody(), folder=folder / "sweep"
        )
        started = time.process_time()
        with executor.store.pins.held():
            self.driver.answer()
        self.taken_in = (time.process_time() - started) / len(ledger.entries)
        self.running: list[str] = []
        self.ends = 0

    def _time_derived(self, executor: Any) -> None:
        produce = executor._produce

        def timed(work: Any) -> Any:
            started = time.process_time()
            yield from produce(work)
            self.meter.derived += time.process_time() - started

        executor._produce = timed

    def fill(self) -> None:
        """Let the driver release trials until all slots are taken or it has none that may start."""
        with self.meter():
            while len(self.running) < self.slots and (released := self.driver.release()) is not None:
                self.running.append(released[0])

    def step(self) -> None:
        """Let one running trial finish a stage; one that has finished its last one ends."""
        place = self.random.randrange(len(self.running))
        trial = self.running[place]
        entry = self.driver.ledger.entries[trial]
        found = self.worker.next(entry.graph.goals)
        if found is not None:
            self.worker.finish(*found, f"{self.driver.ledger.sweep}/{trial}")
            return
        self.running[place] = self.running[-1]
        self.running.pop()
        with self.meter():
            self.driver.ended(trial, {"status": "done", "error": None})
        self.ends += 1

    def measured(self, ends: int) -> Row:
        """Run until all slots are taken, then count over so many ends."""
        self.fill()
        while len(self.running) < self.slots:
            self.step()
            self.fill()
        opens = self.meter.opens
        self.meter, first = Meter(opens), len(self.driver.results)
        opens.count = self.ends = 0
        while self.ends < ends and self.running:
            self.step()
            self.fill()
        meter, self.meter = self.meter, Meter(opens)  # what is computed below is not of these trials
        self.slots += 1  # asked once more, the driver says whether it would rather wait
        started = time.process_time()
        for _ in range(20):
            if self.driver.release() is not None:
                break
        idle = (time.process_time() - started) / 20
        settled = len(self.driver.results) - first - self.ends
        each = max(1, self.ends + settled)
        return Row(
            running=self.slots - 1,
            ends=self.ends,
            settled=settled,
            ms=round((meter.seconds - meter.derived) / each * 1e3, 2),
            derived_ms=round(meter.derived / each * 1e3, 2),
            opens=round(opens.count / each, 1),
            read=round(meter.read / each),
            written=round(meter.written / each),
            idle_ms=round(idle * 1e3, 2),
            taken_in_ms=round(self.taken_in * 1e3, 2),
            peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--running", type=int, nargs="+", default=[2, 80, 800])
    parser.add_argument("--ends", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    opens, rows = Opens(), []
    for running in options.running:
        with tempfile.TemporaryDirectory() as name:
            rows.append(Bench(options.trials, running, Path(name), opens).measured(options.ends))
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    columns = list(asdict(rows[0]))
    print("".join(f"{column:>12}" for column in columns))
    for row in rows:
        print("".join(f"{value:>12}" for value in asdict(row).values()))


if __name__ == "__main__":
    main()

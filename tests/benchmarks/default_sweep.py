"""Where the time of the default sweep goes: seconds by process, waits before and after trials.

    python -m tests.benchmarks.default_sweep [--rounds 1] [gssd.yaml KEY=VALUE ...]

Runs `bdtune sweep gssd.yaml` as a user does, each round in a fresh run directory and with an empty cache
folder. Processor seconds are those of every process that the command starts, looked at four times a second.
Other work on the machine lengthens wall seconds; the share of the cores that it had is printed beside them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

LOOK_S = 0.25
TRIALS = "trials"
ROLES = {
    "ray::ResourceTrainable": TRIALS,
    "ray::IDLE": "unused workers",
    "gcs_server": "Ray: GCS",
    "raylet/raylet": "Ray: raylet",
    "default_worker.py": "unused workers",
    "ray": "Ray: agents in Python",
}
"""What a process is, by the first of these words that its command line has."""


@dataclass
class Watched:
    """The processes of a command, and their processor seconds, as far as they were seen."""

    driver: psutil.Process
    roles: dict[psutil.Process, str] = field(default_factory=dict)
    seconds: dict[psutil.Process, float] = field(default_factory=dict)

    def look(self) -> None:
        """Take in new processes and the processor seconds of all."""
        with suppress(psutil.NoSuchProcess):
            for process in [self.driver, *self.driver.children(recursive=True)]:
                self.roles.setdefault(process, "")
        for process, role in self.roles.items():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                times = process.cpu_times()
                self.seconds[process] = times.user + times.system
                if role != TRIALS and process.status() != psutil.STATUS_ZOMBIE:
                    self.roles[process] = self._role(process) or role

    def _role(self, process: psutil.Process) -> str:
        if process == self.driver:
            return "driver"
        line = " ".join(process.cmdline())
        return next((role for word, role in ROLES.items() if word in line), "")

    def by_role(self) -> Counter[str]:
        """Return processor seconds by role."""
        found: Counter[str] = Counter()
        for process, seconds in self.seconds.items():
            found[self.roles[process]] += seconds
        return found


def measured(words: list[str], folder: Path) -> dict[str, float]:
    """Run the sweep in a new run directory inside `folder`; returns seconds by part."""
    home, printed = folder / "home", folder / "printed.txt"
    command = [sys.executable, "-m", "bdtune.cli", "sweep", *words, "--out", str(home)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    busy, started = _busy(), time.time()
    before: Counter[str] = Counter()
    first = 0.0
    with printed.open("w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
        watched = Watched(psutil.Process(child.pid))
        history = []
        while child.poll() is None:
            watched.look()
            history.append((time.time(), watched.seconds[watched.driver]))
            if not first and any(home.glob("sweeps/*/tune/*/live/*.json")):
                first, before = time.time() - started, watched.by_role()
            time.sleep(LOOK_S)
    wall = time.time() - started
    assert child.returncode == 0, printed.read_text()
    last = max(file.stat().st_mtime for file in home.glob("store/objects/*/*/manifest.json"))
    ended = max(seconds for at, seconds in history if at <= last)
    roles = watched.by_role()
    others = (_busy() - busy - roles.total()) / wall / len(os.sched_getaffinity(0))
    return {
        **{f"before the first stage, {role}": seconds for role, seconds in sorted(before.items())},
        "before the first stage, all": before.total(),
        **{f"processor, {role}": seconds for role, seconds in sorted(roles.items())},
        "after the last result, driver": watched.seconds[watched.driver] - ended,
        "processor, all": roles.total(),
        "wall: from Enter to the first stage": first,
        "wall: after the last result": started + wall - last,
        "wall: all": wall,
        "share of the cores that other work had": others,
    }


def _busy() -> float:
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("words", nargs="*", default=["gssd.yaml"])
    asked = parser.parse_args()
    rounds = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            rounds.append(measured(asked.words, Path(folder)))
    for name in dict.fromkeys(name for found in rounds for name in found):
        values = [found.get(name, 0.0) for found in rounds]
        print(f"{name:48} {median(values):8.2f}   ({', '.join(f'{value:.2f}' for value in values)})")


if __name__ == "__main__":
    main()

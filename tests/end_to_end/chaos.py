"""Blows of all kinds at random moments of a sweep, which is started again until it ends by itself."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.end_to_end.kills import Runs

Processes = list[psutil.Process]
PAUSED_S = 4.0
"""How long a worker is stopped."""
AGAIN_S = 1.0
"""Between the first Ctrl-C and the second."""
HANG_S = 400.0
"""A command that has not ended by then, and is not struck any more, hangs."""
ORPHAN_S = 60.0
"""So long after a driver's end a worker of its Ray session may still begin a stage."""


def session_of(driver: int) -> Processes:
    """Return the processes that a driver and its Ray session started, also those whose parent is gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == driver and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def called(driver: int, test: Callable[[str], bool]) -> Processes:
    """Return the processes of a driver whose command line begins with a word that passes a test."""
    found = []
    for process in session_of(driver):
        with contextlib.suppress(psutil.Error):
            found += [process] if test((process.cmdline() or [""])[0]) else []
    return found


def workers(driver: int) -> Processes:
    """Return the processes that compute trials of a driver."""
    return called(driver, lambda word: word.startswith("ray::") and ".train" in word)


def _driver(pid: int) -> Processes:
    return [psutil.Process(pid)]


def _raylet(pid: int) -> Processes:
    return called(pid, lambda word: word.endswith("/raylet"))


def _gcs(pid: int) -> Processes:
    return called(pid, lambda word: word.endswith("/gcs_server"))


def _stop_and_go(process: psutil.Process) -> None:
    process.suspend()
    time.sleep(PAUSED_S)
    process.resume()


def _ctrl_c(process: psutil.Process) -> None:
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of a command's processes


def _ctrl_c_twice(process: psutil.Process) -> None:
    _ctrl_c(process)
    time.sleep(AGAIN_S)
    with contextlib.suppress(ProcessLookupError):
        _ctrl_c(process)


@dataclass(frozen=True)
class Kind:
    """A way to disturb a sweep."""

    victims: Callable[[int], Processes]
    """Of a driver's process number."""
    strike: Callable[[psutil.Process], None]
    codes: tuple[int, ...] = ()
    """What the command may end with; none: it goes on. 0 where it was at its end, a signal's where Python had
    not begun to take signals."""
    weight: int = 10
    """Of 100 blows."""


SIGKILL, SIGINT, SIGTERM = (-int(each) for each in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
KINDS = {
    "SIGKILL driver": Kind(_driver, psutil.Process.kill, (SIGKILL,), 16),
    "SIGKILL worker": Kind(workers, psutil.Process.kill, (), 28),
    "SIGKILL raylet": Kind(_raylet, psutil.Process.kill, (1, 0), 7),
    "SIGKILL GCS": Kind(_gcs, psutil.Process.kill, (1, 0), 7),
    "SIGTERM driver": Kind(_driver, psutil.Process.terminate, (130, 0, SIGTERM), 10),
    "Ctrl-C": Kind(_driver, _ctrl_c, (130, 0, SIGINT), 12),
    "Ctrl-C twice": Kind(_driver, _ctrl_c_twice, (130, 0, SIGINT), 10),
    "SIGSTOP worker": Kind(workers, _stop_and_go, (), 10),
}


@dataclass
class Blow:
    """One blow that met a running command, and what it cost."""

    kind: str
    sweep: str
    at: float
    """Unix time."""
    second: float
    """Of the start that it met."""
    stages: list[str]
    """The toy stages that the victim was computing, of a driver all of them."""
    victim: int
    started: float
    """When the command was started that it met."""
    phase: str = "stages"
    """"start" before the start's first stage, "between" where none is under way after it."""
    ended: int | None = None
    """The command's exit code; None where it went on."""
    ended_s: float | None = None
    lost_s: float = 0.0
    """Seconds of work that had to be done again."""
    back_s: float | None = None
    """Seconds until stages were computed again; None where nothing was left to do."""


def drawn_kinds(count: int, seed: int) -> list[str]:
    """Return so many kinds by their weights, in a random order."""
    parts = {name: kind.weight * count / 100 for name, kind in KINDS.items()}
    found = [name for name, part in parts.items() for _ in range(int(part))]
    rest = sorted(parts, key=lambda name: int(parts[name]) - parts[name])
    found += rest[: count - len(found)]
    random.Random(seed).shuffle(found)
    return found


class Chaos:
    """Strikes at sweeps with each of `kinds`, most blows within `span_s` of the first stage of a start."""

    def __init__(
        self, kinds: Sequence[str], seed: int, span_s: float, early: float = 0.25, until: float = math.inf
    ) -> None:
        self._left, self._until = list(reversed(kinds)), until
        self.blows: list[Blow] = []
        self.codes: list[int] = []
        """What every command ended with."""
        self.unexplained: list[str] = []
        """What no blow explains: exit codes, work that was done twice, results that are no JSON."""
        self._draw = random.Random(seed)
        self._span_s, self._early = span_s, early
        self._drivers: list[int] = []

    @property
    def goes_on(self) -> bool:
        """Whether there is more to strike with, and time."""
        return bool(self._left) and time.time() < self._until

    def disturb(self, runs: Runs, sweep: str) -> dict[str, Any]:
        """Start a sweep again and again until it ends by itself, with 0; returns what it printed then."""
        first = len(self.blows)
        while True:
            started = time.time()
            process = runs.start()
            self._drivers.append(process.pid)
            while self.goes_on and process.poll() is None:
                if self._strike(runs, sweep, process, started):
                    break
            result = self._ended(runs, process, started)
            if result is not None:
                _costs(runs, self.blows[first:], self.unexplained)
                return result
            met = any(blow.started == started for blow in self.blows)
            assert met, f"it fails by itself: {self.unexplained[-1]}"

    def processes_left(self, wait_s: float) -> list[str]:
        """Return the names of processes that are left of all starts, `wait_s` later at most."""
        deadline = time.monotonic() + wait_s
        while True:
            left = [process for driver in self._drivers for process in session_of(driver)]
            if not left or time.monotonic() > deadline:
                return [process.name() for process in left]
            time.sleep(1.0)

    def _strike(self, runs: Runs, sweep: str, process: subprocess.Popen[str], started: float) -> bool:
        """Wait for a random moment and strike; returns whether the command is to end by that."""
        kind = KINDS[self._left[-1]]
        early, wait_s = self._draw.random() < self._early, self._draw.uniform(0.0, self._span_s)
        begun = len(_since(runs, started))
        while not early and process.poll() is None and len(_since(runs, started)) == begun:
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        while process.poll() is None and not kind.victims(process.pid):
            time.sleep(0.1)
        victims = kind.victims(process.pid) if process.poll() is None else []
        if not victims:
            return False
        victim = self._draw.choice(victims)
        blow = _blow(runs, self._left[-1], sweep, victim.pid, started, process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            kind.strike(victim)
        self._left.pop()
        self.blows.append(blow)
        words = (blow.kind, f"{blow.second:.1f} s", blow.phase, *blow.stages)
        print(f"{len(self.blows)} {sweep}:", *words, file=sys.stderr, flush=True)
        return bool(kind.codes)

    def _ended(self, runs: Runs, process: subprocess.Popen[str], started: float) -> dict[str, Any] | None:
        """Wait for the command's end and note it; returns what it printed if it was done."""
        try:
            out, _ = process.communicate(timeout=HANG_S)
        except subprocess.TimeoutExpired:
            self.unexplained.append(f"the command hung after {self.blows[-1]}")
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
        code = process.returncode
        self.codes.append(code)
        met = [blow for blow in self.blows if blow.started == started]
        last = met[-1] if met else None
        if last is not None and KINDS[last.kind].codes:
            last.ended, last.ended_s = code, time.time() - last.at
        allowed = KINDS[last.kind].codes or (0, 1) if last is not None else (0,)
        if code not in allowed:
            errors = (runs.folder / "stderr.txt").read_text()[-2000:]
            self.unexplained.append(f"exit code {code} after {last}: {errors}")
        printed = _parsed(out)
        if out and printed is None:
            self.unexplained.append(f"no JSON on standard output after {last}: {out[:200]}")
        return printed if code == 0 else None


def _parsed(out: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        found: dict[str, Any] = json.loads(out)
        return found
    return None


def _since(runs: Runs, started: float) -> list[dict[str, Any]]:
    return [note for note in runs.notes() if note["time"] >= started]


def _blow(runs: Runs, kind: str, sweep: str, victim: int, started: float, driver: int) -> Blow:
    """Return a blow that is about to fall, with what is under way."""
    now = time.time()
    own = {process.pid for process in session_of(driver)}  # not what workers of the start before still do
    notes = [note for note in _since(runs, started) if note["pid"] in own]
    trained = [note for note in notes if note["stage"] != "toy_threshold"]
    ended = {_identity(note) for note in runs.notes(what="end")}
    active = [note for note in trained if _identity(note) not in ended]
    if kind.endswith("worker"):
        active = [note for note in active if note["pid"] == victim]
    phase = "stages" if active else "between" if trained else "start"
    return Blow(kind, sweep, now, now - started, [note["stage"] for note in active], victim, started, phase)


def _identity(note: dict[str, Any]) -> str:
    return json.dumps([note["stage"], note["identity"]], sort_keys=True)


def _costs(runs: Runs, blows: list[Blow], unexplained: list[str]) -> None:
    """Enter what each blow cost: all starts of a stage but the last one are work that was lost."""
    starts = defaultdict(list)
    for note in runs.notes():
        starts[_identity(note)].append(note)
    for executions in starts.values():
        for lost, again in pairwise(executions):
            blow = _cause(lost, blows)
            if blow is None:
                unexplained.append(f"computed again without a blow: {lost}")
                continue
            kept = (again.get("done", 0) - lost.get("done", 0)) * lost["identity"][0].get("seconds", 0.0)
            blow.lost_s += max(0.0, blow.at - lost["time"] - kept)
            if blow.victim == lost["pid"]:
                blow.back_s = again["time"] - blow.at
    for blow in blows:
        if blow.ended is not None:
            blow.back_s = _back_s(blow, runs.notes())
        elif blow.kind == "SIGSTOP worker":
            blow.back_s = PAUSED_S


def _back_s(blow: Blow, notes: list[dict[str, Any]]) -> float | None:
    """Return the seconds until a later start computed a stage: not what a blow left behind."""
    next_start = blow.at + (blow.ended_s or 0.0)
    before = {note["pid"] for note in notes if note["time"] < next_start}
    new = [note["time"] for note in notes if note["time"] >= next_start and note["pid"] not in before]
    return min(new) - blow.at if new else None


def _cause(lost: dict[str, Any], blows: list[Blow]) -> Blow | None:
    """Return the blow that cut off a stage: one at its process, or one that ended its command."""
    for blow in blows:
        if blow.at >= lost["time"] and (blow.victim == lost["pid"] or _ends(blow, lost)):
            return blow
    ending = [blow for blow in blows if blow.ended is not None and 0 < lost["time"] - blow.at < ORPHAN_S]
    return ending[-1] if ending else None


def _ends(blow: Blow, lost: dict[str, Any]) -> bool:
    return blow.ended is not None and blow.started <= lost["time"]

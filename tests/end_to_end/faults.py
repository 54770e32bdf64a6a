"""Faults of a cluster's nodes, each struck at a running sweep, and what they cost."""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.end_to_end.kills import by_setting, digests
from tests.end_to_end.machines import PATIENCE_S, ClusterRuns, Machines, OverError, machines

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.s3 import Server

NODES = ("head", "one", "two")
WORKERS = ("one", "two", "new")
LOST_HEAD = "head and driver killed"


@dataclass
class Fault:
    """One fault that met a running sweep, and what it cost."""

    kind: str
    node: str
    at: float
    """Unix time."""
    pids: set[int]
    """The processes of the node that had begun a stage."""
    stage: str = ""
    """What the node was computing."""
    lost_s: float = 0.0
    """Seconds of work that had to be done again."""
    back_s: float | None = None
    """Seconds until the stage went on or, of what ended no process, until the node began its next stage."""
    sweep_back_s: float | None = None
    """Seconds until any stage began, where the whole sweep was gone."""
    resumed: str = ""
    """After which of its epochs a stage went on."""


@dataclass
class Scene:
    """A running sweep on a cluster."""

    cluster: Machines
    runs: ClusterRuns
    process: subprocess.Popen[str]
    cut_s: float

    def begin(self, kind: str, *nodes: str) -> Fault:
        """Wait until one of these nodes is in the middle of a stage, which is to be struck."""
        node = self.runs.wait_for_work(self.cluster, *nodes)
        note = self.runs.under_way(self.cluster, node)
        return Fault(kind, node, time.time(), self.pids(node), note["stage"] if note else "")

    def pids(self, node: str) -> set[int]:
        """Return the processes of a node that have begun a stage."""
        machine = self.cluster.machines[node]
        return {note["pid"] for note in self.runs.notes() if machine.has(note["pid"])}


def _kill(scene: Scene) -> Fault:
    fault = scene.begin("node killed", *WORKERS)
    scene.cluster.kill(fault.node)
    return fault


def _add(scene: Scene) -> Fault:
    scene.cluster.add("new")
    fault = Fault("node added", "new", time.time(), set())
    note = scene.runs.wait_until(lambda *_: scene.runs.under_way(scene.cluster, "new"))
    fault.back_s = note["time"] - fault.at
    return fault


def _cut(how: str) -> Callable[[Scene], Fault]:
    def strike(scene: Scene) -> Fault:
        fault = scene.begin(f"network cut ({how})", *WORKERS)
        machine = scene.cluster.machines[fault.node]
        machine.proxy.cut(how)
        time.sleep(scene.cut_s)
        machine.proxy.mend()
        process = scene.process
        scene.runs.wait_until(lambda *_: process.poll() is not None or _next(scene.runs, fault))
        found = _next(scene.runs, fault)
        fault.back_s = found["time"] - fault.at if found else None
        return fault

    return strike


def _next(runs: ClusterRuns, fault: Fault) -> dict[str, Any] | None:
    """Return the next stage that a process of the struck node began."""
    return next(
        (note for note in runs.notes() if note["time"] > fault.at and note["pid"] in fault.pids), None
    )


def _drain(scene: Scene) -> Fault:
    fault = scene.begin("node drained", *WORKERS)
    scene.cluster.drain(fault.node)
    machine = scene.cluster.machines[fault.node]
    scene.runs.wait_until(lambda *_: not any(machine.has(pid) for pid in fault.pids))
    scene.cluster.take_away(fault.node)
    return fault


def _lose_head(scene: Scene) -> Fault:
    fault = scene.begin(LOST_HEAD, *WORKERS)
    scene.process.kill()
    scene.cluster.kill_head()
    scene.process.communicate()
    return fault


KINDS: dict[str, Callable[[Scene], Fault]] = {
    "kill": _kill,
    "add": _add,
    "refuse": _cut("refuse"),
    "stall": _cut("stall"),
    "drain": _drain,
    "head": _lose_head,
}


def struck(
    kinds: Sequence[str], folder: Path, s3: Server, *, cut_s: float, slower: float
) -> tuple[list[Fault], list[str]]:
    """Strike a sweep in these ways, one after the other, and run it to its end on a second cluster.

    What is left of the ways when the sweep is over is not struck.

    Returns the faults, and in what the sweep's end differs from that of an undisturbed one.
    """
    runs = ClusterRuns(folder / "sweep", s3.new_address(), slower)
    with machines(folder, s3, runs.folder / "runs") as cluster:
        for name in NODES:
            cluster.add(name)
        process = runs.start("--address", cluster.address)
        scene = Scene(cluster, runs, process, cut_s)
        faults = []
        for kind in kinds:
            try:
                faults.append(KINDS[kind](scene))
            except OverError:
                print(f"{kind}: the sweep was over before", file=sys.stderr, flush=True)
                break
            print(f"{faults[-1].kind}: {faults[-1].node}", file=sys.stderr, flush=True)
        ended = [] if process.poll() == -signal.SIGKILL else [_ended(process, runs)]
    with machines(folder, s3, runs.folder / "runs") as cluster:
        for name in NODES[:-1]:
            cluster.add(name)
        result = ended[0] if ended else _ended(runs.start("--address", cluster.address), runs)
        other = ClusterRuns(folder / "undisturbed", s3.new_address())
        expected = _ended(other.start("--address", cluster.address), other)
    for fault in faults:
        _cost(fault, runs)
    return faults, _differences(runs, result, other, expected)


def _ended(process: subprocess.Popen[str], runs: ClusterRuns) -> dict[str, Any]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, runs.errors[-3000:]
    found: dict[str, Any] = json.loads(out)
    return found


def _cost(fault: Fault, runs: ClusterRuns) -> None:
    again = [pair for pair in runs.again(fault.at) if pair[0]["pid"] in fault.pids]
    for lost, next_one in again:
        seconds = lost["identity"][0]["seconds"]
        kept = (next_one["done"] - lost["done"]) * seconds
        fault.lost_s += max(0.0, fault.at - lost["time"] - kept)
        fault.resumed = f"{next_one['done']} of {lost['identity'][0]['epochs']}"
    if again:
        fault.back_s = min(next_one["time"] for _, next_one in again) - fault.at
    if fault.kind == LOST_HEAD:
        fault.sweep_back_s = min(note["time"] for note in runs.notes() if note["time"] > fault.at) - fault.at


def _differences(
    runs: ClusterRuns, result: dict[str, Any], other: ClusterRuns, expected: dict[str, Any]
) -> list[str]:
    wrong = {
        "other numbers": by_setting(result) != by_setting(expected),
        "other contents": sorted(digests(runs).values()) != sorted(digests(other).values()),
        "computed twice": runs.computed_twice(),
        "published twice": runs.published_again(),
        f"left: {runs.left()}": runs.left(),
    }
    return [difference for difference, is_so in wrong.items() if is_so]

"""A Ray cluster of several nodes on this machine, which share nothing but a store in a bucket.

Each node has a host name, a cache and a way to the store of its own, and does not see the run directory.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bdtune.engine.store import Store
from tests.end_to_end.kills import SPACE, Runs
from tests.end_to_end.proxy import Proxy

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from tests.s3 import Server

SITE = Path(__file__).parent / "node_site"
ROOT = Path(__file__).parents[2]
# Checkpoints and a report at each epoch; nothing is stopped, as that would depend on the order of events.
JUDGED = (
    SPACE.replace("[0, 1]", "[0, 1, 2, 3]").replace("epochs: 4", "epochs: 10")
    + "scheduler: {name: asha, grace: 100}\n"
)
DRAIN_S = 120
PATIENCE_S = 900.0
"""For anything to happen: a busy machine takes minutes to start processes."""
FEW_DAEMONS = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
STARTS = 6
"""Attempts to start a node."""


class Machine:
    """One node: its Ray processes, and its way to the store."""

    def __init__(self, name: str, node: Any, proxy: Proxy) -> None:
        self.name, self.node, self.proxy = name, node, proxy

    @property
    def raylet(self) -> psutil.Process:
        return psutil.Process(self.node.all_processes["raylet"][0].process.pid)

    def has(self, pid: int) -> bool:
        """Return whether a process runs on this node."""
        with contextlib.suppress(psutil.Error):
            return self.raylet in psutil.Process(pid).parents()
        return False


class Machines:
    """A cluster whose first node is its head, where no trial runs; the others have one CPU."""

    def __init__(self, folder: Path, s3: Server, hidden: Path) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.s3, self.hidden = folder, s3, hidden
        self._before = set(psutil.Process().children())
        self.cluster = Cluster()
        self.machines: dict[str, Machine] = {}

    def add(self, name: str, **changed: str) -> Machine:
        """Start a node; its first one is the head. `changed`: variables of its environment."""
        proxy = Proxy(int(self.s3.url.rpartition(":")[2]))
        environment = {
            **self.s3.environment,
            "AWS_ENDPOINT_URL": proxy.url,
            "PYTHONPATH": f"{SITE}{os.pathsep}{ROOT}",
            "NODE_NAME": name,
            "NODE_HIDDEN": str(self.hidden),
            "BDTUNE_CACHE": str(self.folder / "caches" / name),
            **changed,
        }
        node = self._started(node_name=name, env_vars=environment, num_cpus=1 if self.machines else 0)
        self.machines[name] = Machine(name, node, proxy)
        return self.machines[name]

    def _started(self, **options: Any) -> Any:
        """Start a node's processes, again if need be: Ray gives them 30 s, a busy machine may need more."""
        before = set(psutil.Process().children())
        for left in reversed(range(STARTS)):
            try:
                return self.cluster.add_node(**options, **FEW_DAEMONS)
            except Exception:  # Ray raises it bare
                _end_children(but=before)
                if not left:
                    raise
        raise AssertionError("the last attempt returns or raises")

    @property
    def address(self) -> str:
        found: str = self.cluster.address
        return found

    def where(self, pid: int) -> Machine | None:
        """Return the node that a process runs on."""
        return next((machine for machine in self.machines.values() if machine.has(pid)), None)

    def kill(self, name: str) -> None:
        """End all processes of a node at once, as a power failure does."""
        machine = self.machines.pop(name)
        raylet = machine.raylet
        for process in [raylet, *raylet.children(recursive=True)]:
            _end(process)
        self._forget(machine)

    def drain(self, name: str) -> None:
        """Announce that a node will be taken away, as a spot market or an autoscaler does."""
        from ray._raylet import GcsClient
        from ray.core.generated.autoscaler_pb2 import DrainNodeReason

        deadline_ms = int((time.time() + DRAIN_S) * 1000)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        node = self.machines[name].node
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "spot", deadline_ms)
        assert accepted, why

    def take_away(self, name: str) -> None:
        """End a node's processes in order."""
        self._forget(self.machines.pop(name))

    def kill_head(self) -> None:
        """End the GCS and the head's processes; the other nodes are left alone with it."""
        name = next(iter(self.machines))
        for process in self.cluster.head_node.all_processes["gcs_server"]:
            process.process.kill()
        self.kill(name)

    def close(self) -> None:
        for name in list(self.machines):
            self.kill(name)
        with contextlib.suppress(Exception):  # Ray's own, of what is gone
            self.cluster.shutdown()
        _end_children(but=self._before)

    def _forget(self, machine: Machine) -> None:
        machine.proxy.close()
        self.cluster.remove_node(machine.node, allow_graceful=False)


class OverError(Exception):
    """The sweep ended before what was waited for."""


class ClusterRuns(Runs):
    """Starts of one sweep on a cluster, whose store is a bucket."""

    def __init__(self, folder: Path, store: str, slower: float = 1.0, *, space: str = JUDGED) -> None:
        super().__init__(folder, slower, space=space)
        self.address = store

    def start(self, *words: str) -> subprocess.Popen[str]:
        self.process = super().start("--store", self.address, *words)
        return self.process

    @property
    def store(self) -> Store:
        return Store(self.address)

    @property
    def errors(self) -> str:
        """What the commands said on standard error."""
        return (self.folder / "stderr.txt").read_text()

    def wait_until(self, holds: Any) -> Any:
        """Return what a condition on the notes gives once it holds; `OverError` if the sweep ends first."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := holds(self.notes(), self.notes(what="end"))):
            if self.process.poll() is not None:
                raise OverError
            assert time.monotonic() < deadline, self.errors[-3000:]
            time.sleep(0.1)
        return found

    def under_way(self, machines: Machines, *names: str) -> dict[str, Any] | None:
        """Return the start of a long stage that a process of one of these nodes is computing."""
        ended = {identity(note) for note in self.notes(what="end")}
        for note in reversed(self.notes()):
            if note["stage"] != "toy_threshold" and identity(note) not in ended:
                machine = machines.where(note["pid"])
                if machine is not None and machine.name in names:
                    return note
        return None

    def wait_for_work(self, machines: Machines, *names: str) -> str:
        """Wait until one of these nodes has computed two epochs of a long stage; returns which."""

        def look(*_: Any) -> str | None:
            note = self.under_way(machines, *names)
            if note is None or time.time() - note["time"] < 2 * note["identity"][0]["seconds"] + 0.5:
                return None
            machine = machines.where(note["pid"])
            return machine.name if machine is not None else None

        found: str = self.wait_until(look)
        return found

    def computed_twice(self) -> list[str]:
        """Return the stages that were computed to their end more than once."""
        return [name for name, count in Counter(map(identity, self.notes(what="end"))).items() if count > 1]

    def published_again(self) -> list[str]:
        """Return the keys that the store's log has more than once."""
        rows = Counter(row["key"] for row in self.store.costs())
        return [key for key, count in rows.items() if count > 1]

    def left(self) -> list[str]:
        """Return leases, pins and checkpoints that stayed in the bucket."""
        objects = self.store.place.objects
        return [each.name for kind in ("leases", "pins", "checkpoints") for each in objects.list(kind)]

    def again(self, at: float, until: float = math.inf) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the starts that a fault at a moment cut off, each with the stage's next start after it."""
        starts = defaultdict(list)
        for note in self.notes():
            starts[identity(note)].append(note)
        return [
            (lost, next_one)
            for each in starts.values()
            for lost, next_one in pairwise(each)
            if lost["time"] <= at < next_one["time"] <= until
        ]


def _end_children(but: set[psutil.Process]) -> None:
    """End the processes that this one has started since, with theirs."""
    for child in set(psutil.Process().children()) - but:
        with contextlib.suppress(psutil.Error):
            for process in child.children(recursive=True):
                _end(process)
        _end(child)


def _end(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.Error):
        process.kill()


def identity(note: dict[str, Any]) -> str:
    """Return what a note is about: a stage, its knobs, seed and inputs."""
    return json.dumps([note["stage"], note["identity"]], sort_keys=True)


@contextlib.contextmanager
def machines(folder: Path, s3: Server, hidden: Path) -> Iterator[Machines]:
    """Give an empty cluster, whose Ray session has a folder of its own."""
    before = {name: os.environ.get(name) for name in ("RAY_TMPDIR", "RAY_AUTH_MODE")}
    short = tempfile.mkdtemp(prefix="m", dir="/tmp")  # sockets have short names
    os.environ |= {"RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled"}
    found = Machines(folder, s3, hidden)
    try:
        yield found
    finally:
        found.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(short, ignore_errors=True)

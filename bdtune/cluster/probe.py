"""What a Ray cluster is like, for `bdtune doctor --address`: its nodes, and what each of them has.

A process of its own joins the cluster, since joining one that does not answer takes minutes. It runs this
module as its main one, so that nodes get the functions by value: one without bdtune can answer, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.cluster.session import check_answers
from bdtune.errors import Problem, UserError

if TYPE_CHECKING:
    from pathlib import Path

JOIN_S, NODES_S = 60.0, 20.0
"""How long a cluster and its nodes may take to answer."""
ANSWER = "bdtune-probe "
"""Before the answer, which Ray's own lines may surround."""


@dataclass(frozen=True)
class NodeFacts:
    """What a node is and has; `error` says why it did not answer."""

    host: str
    cpus: float
    gpus: float
    versions: dict[str, str | None]
    """Of python, ray, bdtune and torch; None where one cannot be imported."""
    same_folders: dict[str, bool]
    """By path: whether the node sees the very folder that this machine does."""
    error: str = ""
    mps: bool = False
    """Whether NVIDIA's multi-process service runs there."""


@dataclass(frozen=True)
class Cluster:
    """A cluster's address and its living nodes."""

    address: str
    nodes: tuple[NodeFacts, ...]


def probe(address: str, folders: list[Path]) -> Cluster:
    """Join a cluster for a moment and ask each node what it has.

    Raises `UserError` when nobody answers there, or the cluster refuses us.
    """
    check_answers(address)
    command = [sys.executable, "-m", "bdtune.cluster.probe", address, *map(str, folders)]
    try:
        done = subprocess.run(  # noqa: S603  this very module
            command, capture_output=True, text=True, timeout=JOIN_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise _no_cluster(address, f"no answer within {JOIN_S:g} s") from None
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        raise _no_cluster(address, (done.stderr.strip().splitlines() or ["no answer"])[-1])
    answer: dict[str, Any] = json.loads(answers[-1].removeprefix(ANSWER))
    if "error" in answer:
        raise _no_cluster(address, answer["error"])
    return Cluster(answer["address"], tuple(NodeFacts(**node) for node in answer["nodes"]))


def _no_cluster(address: str, got: str) -> UserError:
    hint = "Start one with `ray start --head`, and use the same token on every node (jobs/README.md)"
    return UserError(Problem("--address", f"expected a Ray cluster at {address}", got, hint=hint))


def _join(address: str, folders: list[str]) -> dict[str, Any]:
    """Return the answer to `probe`: in a process of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address=address, log_to_driver=False, logging_level="error")
    here = {folder: _number(folder) for folder in folders}
    nodes = [node for node in ray.nodes() if node["Alive"]]
    asked = {}
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(_look)
        asked[task.remote(folders)] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=NODES_S)
    found = []
    for reference, node in asked.items():
        has, seen, mps, error = {}, dict.fromkeys(folders), False, ""
        if reference not in answered:
            error = f"no answer within {NODES_S:g} s"
        else:
            try:
                has, seen, mps = ray.get(reference)
            except Exception as raised:
                error = f"{type(raised).__name__}: {str(raised).strip().splitlines()[-1]}"
        found.append(
            {
                "host": node["NodeManagerHostname"],
                "cpus": node["Resources"].get("CPU", 0.0),
                "gpus": node["Resources"].get("GPU", 0.0),
                "versions": has,
                "same_folders": {folder: seen[folder] == here[folder] is not None for folder in folders},
                "error": error,
                "mps": mps,
            }
        )
    address = ray.get_runtime_context().gcs_address
    ray.shutdown()
    return {"address": address, "nodes": found}


def _look(folders: list[str]) -> tuple[dict[str, str | None], dict[str, int | None], bool]:
    """Return versions, the folders' numbers, as a node sees them, and whether MPS runs there."""
    import importlib.metadata
    import platform

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("ray", "bdtune", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions, {folder: _number(folder) for folder in folders}, _mps_runs()


def _mps_runs() -> bool:
    """Return whether NVIDIA's multi-process service runs, as `hardware.mps_runs`: a node may lack bdtune."""
    from pathlib import Path

    for name in Path("/proc").glob("[0-9]*/comm"):
        try:
            if name.read_text().startswith("nvidia-cuda-mps"):
                return True
        except OSError:  # it has ended meanwhile
            continue
    return False


def _number(folder: str) -> int | None:
    """Return the number that a folder has in its file system, which is the same from every node."""
    from pathlib import Path

    try:
        return Path(folder).stat().st_ino
    except OSError:
        return None


if __name__ == "__main__":
    try:
        found = _join(sys.argv[1], sys.argv[2:])
    except Exception as raised:
        lines = str(raised).strip().splitlines() or [""]
        found = {"error": f"{type(raised).__name__}: {lines[0]}"}
    print(f"{ANSWER}{json.dumps(found)}", flush=True)
    os._exit(0)  # whatever Ray has to say at the end

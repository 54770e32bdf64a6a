"""`bdtune doctor`: what is installed, which devices there are, which data is found."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bdtune import __version__
from bdtune.engine.hardware import mps_runs
from bdtune.engine.manifest import git_commit
from bdtune.engine.node_cache import NodeCache, node_folder
from bdtune.engine.objects import check, open_bucket
from bdtune.errors import BdtuneError, ConfigError
from bdtune.plugins import registry
from bdtune.reading.decoded import MAPS
from bdtune.tracking.commands import doctor_lines
from bdtune.verbs.place import folder
from bdtune.verbs.stores import store_at

if TYPE_CHECKING:
    from bdtune.cluster.probe import NodeFacts

PACKAGES = ("torch", "torchvision", "numpy", "pyarrow", "pydantic", "safetensors", "scikit-learn")
FOR_SWEEPS = ("ray", "optuna", "mlflow")
"""What `bdtune run` works without."""
LEAST_FREE_BYTES = 5e9
"""A default sweep leaves a few hundred megabytes; one of CIFAR-10 some gigabytes."""

Severity = Literal["ok", "info", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; a problem keeps a sweep from running, an info only some of them."""

    about: str
    severity: Severity
    text: str


def examine(
    run_dir: Path, data_root: Path | None = None, address: str | None = None, *, store: str | None = None
) -> list[Finding]:
    """Look at everything that a sweep needs, on the nodes of a Ray cluster too.

    Starts nothing, and writes nothing but the mark by which a bucket is known to be writable.

    Raises `UserError` when nobody answers at `address`.
    """
    cluster = _cluster(address, run_dir, data_root) if address else []  # first, as it may be no cluster's
    commit = git_commit()
    version = f"{__version__} at {commit}" if commit else __version__
    found = [
        Finding("bdtune", "ok", f"{version}, in {Path(registry.__file__).parent}"),
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}"),
    ]
    found += [_package(name) for name in (*PACKAGES, *FOR_SWEEPS)]
    found += [_jobs(), *_devices(), _disk(run_dir), _store(run_dir, store), _maps()]
    found += [Finding("mlflow store", "ok" if good else "info", line) for good, line in doctor_lines(run_dir)]
    return found + _plugins() + _data(data_root) + cluster


def _package(name: str) -> Finding:
    try:
        return Finding(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        needed = "; `bdtune run` works without, `bdtune sweep` does not" if name in FOR_SWEEPS else ""
        return Finding(name, "problem", f"not installed{needed}")


def _jobs() -> Finding:
    if util.find_spec("opencensus") is not None:  # what ray[default] adds to plain ray
        return Finding("ray[default]", "ok", "installed: dashboard and Ray Jobs")
    text = "not installed: no dashboard, no Ray Jobs; needed on a cluster only, and part of bdtune[cluster]"
    return Finding("ray[default]", "info", text)


def _devices() -> list[Finding]:
    cores = f"{len(os.sched_getaffinity(0))} CPU cores"
    try:
        import torch
    except ImportError as error:
        return [Finding("devices", "problem", f"{cores}; torch cannot be imported: {error}")]
    from bdtune.engine.numerics import Numerics

    resolved = Numerics().resolved()
    gpus = [_gpu(torch.cuda, index) for index in range(torch.cuda.device_count())]
    trains = f"trains on {resolved.device} in {resolved.precision}"
    found = Finding("devices", "ok", f"{cores}, {', '.join(gpus) or 'no GPU'}; {trains}")
    return [found, _mps()] if gpus else [found]


def _gpu(cuda: Any, index: int) -> str:
    """Return a GPU's name and its free memory."""
    free, total = cuda.mem_get_info(index)
    return f"{cuda.get_device_name(index)} ({free / 1e9:.0f} of {total / 1e9:.0f} GB free)"


def _mps() -> Finding:
    """Say what becomes of trials that share a GPU."""
    if mps_runs():
        return Finding("NVIDIA MPS", "ok", "runs: trials that share a GPU compute at the same time")
    text = "does not run: trials that share a GPU (resources.gpu below 1) take turns on it"
    return Finding("NVIDIA MPS", "info", f"{text}; `nvidia-cuda-mps-control -d` starts it")


def _disk(run_dir: Path) -> Finding:
    folder = next(parent for parent in (run_dir, *run_dir.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    severity: Severity = "ok" if free >= LEAST_FREE_BYTES else "info"
    return Finding("run directory", severity, f"{run_dir}, {free / 1e9:.0f} GB free")


def _maps() -> Finding:
    """Say where streamed sets leave their decoded images, and how much room they take."""
    folder = node_folder(MAPS)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    held = sum(file.stat().st_blocks * 512 for file in folder.glob("*/*"))
    free = shutil.disk_usage(there).free
    text = f"{folder}: {held / 1e9:.1f} GB of streamed data sets, {free / 1e9:.0f} GB free"
    if not os.access(there, os.W_OK):
        return Finding("decoded images", "info", f"{text}; not writable, so each epoch decodes anew")
    return Finding("decoded images", "ok", text)


def _store(run_dir: Path, given: str | None) -> Finding:
    """Say where the store is; of a bucket, whether it can be written and heeds conditions."""
    try:
        at = store_at(run_dir, given)
        if isinstance(at, Path):
            return Finding("store", "ok", str(at))
        check(open_bucket(at), write=True)
    except BdtuneError as error:
        return Finding("store", "problem", str(error))
    cache = NodeCache.of_this_node()
    text = f"{at}, can be written; copies in {cache.folder}, at most {cache.most_bytes / 1e9:g} GB"
    return Finding("store", "ok", text)


def _plugins() -> list[Finding]:
    """Say of each folder of `BDTUNE_PLUGINS` whether it has anything for the registry."""
    found = []
    for root in filter(None, os.environ.get("BDTUNE_PLUGINS", "").split(os.pathsep)):
        kinds = [kind for kind in registry.EVERY if (Path(root) / kind).is_dir()]
        text = f"{root}: {', '.join(kinds) or 'none of ' + ', '.join(registry.EVERY)}"
        found.append(Finding("plugins", "ok" if kinds else "info", text))
    return found


def _data(data_root: Path | None) -> list[Finding]:
    root = data_root or (Path(os.environ["BDTUNE_DATA"]) if os.environ.get("BDTUNE_DATA") else None)
    root = folder("--data-root", root) if root else None
    if root is None:
        found = [Finding("data root", "info", "none; digits needs none; else set data_root or BDTUNE_DATA")]
    else:
        there = root.is_dir()
        found = [Finding("data root", "ok" if there else "info", f"{root}{'' if there else ' is no folder'}")]
    for name in registry.names("datasets"):
        try:
            problems = registry.load("datasets", name)().check(root)
        except ConfigError as error:
            found.append(Finding(f"data set {name}", "problem", str(error)))
            continue
        except ValueError:  # needs a knob to say which data it is
            continue
        text = "found" if not problems else f"not found: {problems[0].expected.removeprefix('expected ')}"
        found.append(Finding(f"data set {name}", "info" if problems else "ok", text))
    return found


def _cluster(address: str, run_dir: Path, data_root: Path | None) -> list[Finding]:
    """Say of a Ray cluster and its nodes what keeps trials from running there."""
    from bdtune.cluster.probe import probe

    run_folder = next(parent for parent in (run_dir, *run_dir.parents) if parent.exists())
    data = Path(data_root or os.environ.get("BDTUNE_DATA") or run_folder).expanduser().absolute()
    cluster = probe(address, [run_folder, *([data] if data.is_dir() and data != run_folder else [])])
    cpus, gpus = sum(node.cpus for node in cluster.nodes), sum(node.gpus for node in cluster.nodes)
    nodes = f"{len(cluster.nodes)} node{'' if len(cluster.nodes) == 1 else 's'}"
    text = f"{cluster.address}: {nodes}, {cpus:g} CPUs, {gpus:g} GPUs"
    found = [Finding("cluster", "ok", text), _token()]
    return found + [_node(node) for node in cluster.nodes]


def _token() -> Finding:
    """Say whether Ray asks for a token; the token itself is in no message."""
    mode = os.environ.get("RAY_AUTH_MODE", "unset")
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    there = named or (Path.home() / ".ray" / "auth_token").exists()
    text = f"RAY_AUTH_MODE is {mode}, {'a token is there' if there else 'there is no token'}"
    if mode == "token" and there:
        return Finding("token", "ok", text)
    return Finding("token", "info", f"{text}; whoever reaches a cluster without one runs code on it")


def _node(node: NodeFacts) -> Finding:
    """Say whether a node has what this machine has, and sees the same folders."""
    if node.error:
        return Finding(f"node {node.host}", "problem", node.error)
    wrong = [
        f"{name} {has or 'is missing'} where this machine has {ours}"
        for name, ours in _versions().items()
        if (has := node.versions.get(name)) != ours
    ]
    wrong += [
        f"{path} is not the folder of this machine" for path, same in node.same_folders.items() if not same
    ]
    mps = {True: " with MPS", False: " without MPS"}[node.mps] if node.gpus else ""
    text = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs{mps}; {'; '.join(wrong) or 'same versions, same folders'}"
    return Finding(f"node {node.host}", "problem" if wrong else "ok", text)


def _versions() -> dict[str, str]:
    """Return the versions that all nodes must have."""
    installed = {name: metadata.version(name) for name in ("ray", "bdtune", "torch")}
    return {"python": platform.python_version(), **installed}

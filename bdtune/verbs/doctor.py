"""`bdtune doctor`: what is installed, which devices there are, which data is found."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from bdtune import __version__
from bdtune.engine.manifest import git_commit
from bdtune.plugins import registry
from bdtune.tracking.commands import doctor_lines
from bdtune.verbs.place import folder

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


def examine(run_dir: Path, data_root: Path | None = None) -> list[Finding]:
    """Look at everything that a sweep needs; starts and writes nothing."""
    commit = git_commit()
    version = f"{__version__} at {commit}" if commit else __version__
    found = [
        Finding("bdtune", "ok", f"{version}, in {Path(registry.__file__).parent}"),
        Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}"),
    ]
    found += [_package(name) for name in (*PACKAGES, *FOR_SWEEPS)]
    found += [_jobs(), _devices(), _disk(run_dir)]
    found += [Finding("mlflow store", "ok" if good else "info", line) for good, line in doctor_lines(run_dir)]
    return found + _plugins() + _data(data_root)


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


def _devices() -> Finding:
    cores = f"{len(os.sched_getaffinity(0))} CPU cores"
    try:
        import torch
    except ImportError as error:
        return Finding("devices", "problem", f"{cores}; torch cannot be imported: {error}")
    from bdtune.engine.numerics import Numerics

    resolved = Numerics().resolved()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    trains = f"trains on {resolved.device} in {resolved.precision}"
    return Finding("devices", "ok", f"{cores}, {', '.join(gpus) or 'no GPU'}; {trains}")


def _disk(run_dir: Path) -> Finding:
    folder = next(parent for parent in (run_dir, *run_dir.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    severity: Severity = "ok" if free >= LEAST_FREE_BYTES else "info"
    return Finding("run directory", severity, f"{run_dir}, {free / 1e9:.0f} GB free")


def _plugins() -> list[Finding]:
    """Say of each folder of `BDTUNE_PLUGINS` whether it has anything for the registry."""
    found = []
    for root in filter(None, os.environ.get("BDTUNE_PLUGINS", "").split(os.pathsep)):
        every = (*registry.KINDS, *registry.TABLES)
        kinds = [kind for kind in every if (Path(root) / kind).is_dir()]
        text = f"{root}: {', '.join(kinds) or 'none of ' + ', '.join(every)}"
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
        except ValueError:  # needs a knob to say which data it is
            continue
        text = "found" if not problems else f"not found: {problems[0].expected.removeprefix('expected ')}"
        found.append(Finding(f"data set {name}", "info" if problems else "ok", text))
    return found

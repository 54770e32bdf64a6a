"""`bdtune doctor`: what is installed, which devices there are, which data is found."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bdtune import registry
from bdtune.tracking.commands import doctor_lines

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy", "pyarrow", "pydantic")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    about: str
    good: bool
    text: str


def examine(run_dir: Path, data_root: Path | None = None) -> list[Finding]:
    """Look at everything that a sweep needs; starts and writes nothing."""
    found = [Finding("python", True, f"{platform.python_version()} on {platform.platform()}")]
    found += [_package(name) for name in PACKAGES]
    found += [_devices(), _disk(run_dir)]
    found += [Finding("mlflow store", True, line) for line in doctor_lines(run_dir)]
    return found + _data(data_root)


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        needed = (
            "needed by `bdtune sweep`; `bdtune run` works without"
            if name in ("ray", "mlflow", "optuna")
            else "needed"
        )
        return Finding(name, False, f"not installed; {needed}")


def _devices() -> Finding:
    cores = len(os.sched_getaffinity(0))
    try:
        import torch
    except ImportError as error:
        return Finding("devices", False, f"{cores} CPU cores; torch cannot be imported: {error}")
    from bdtune.engine.numerics import Numerics

    resolved = Numerics().resolved()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    listed = ", ".join(gpus) or "no GPU"
    return Finding("devices", True, f"{cores} CPU cores, {listed}; trains in {resolved.precision} here")


def _disk(run_dir: Path) -> Finding:
    folder = next(parent for parent in (run_dir, *run_dir.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    text = f"{run_dir}, {free / 1e9:.0f} GB free" + ("" if writable else "; cannot be written")
    return Finding("run directory", writable, text)


def _data(data_root: Path | None) -> list[Finding]:
    root = data_root or (Path(os.environ["BDTUNE_DATA"]) if os.environ.get("BDTUNE_DATA") else None)
    where = str(root) if root else "no data_root and no BDTUNE_DATA"
    found = [Finding("data", True, where)]
    for name in registry.names("datasets"):
        try:
            problems = registry.load("datasets", name)().check(root)
        except ValueError:  # needs a knob to say which data it is
            continue
        text = "found" if not problems else f"not found: {problems[0].expected}"
        found.append(Finding(f"data set {name}", not problems, text))
    return found

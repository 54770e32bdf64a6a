"""What computes here: the versions and the processor that decide the last bits of a result."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PACKAGES = ("numpy", "pillow", "scikit-learn", "scipy", "torch", "torchvision")
"""Packages that compute."""


def environment() -> dict[str, str]:
    """Return versions, the processor's name and torch's threads; the GPU's name where torch sees one."""
    found = dict(_versions())
    torch: Any = sys.modules.get("torch")  # the engine does not load torch; a stage may have
    if torch is not None:
        found["threads"] = str(torch.get_num_threads())
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def same_libraries(recorded: Mapping[str, str]) -> bool:
    """Return whether what computes here has the versions of a recorded environment."""
    return all(recorded.get(name) == version for name, version in _versions() if name != "cpu")


@contextmanager
def threads_of(recorded: Mapping[str, str]) -> Iterator[None]:
    """Let torch, where it is loaded, compute with as many threads as in a recorded environment."""
    torch: Any = sys.modules.get("torch")
    if torch is None or "threads" not in recorded:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(int(recorded["threads"]))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let the BLAS of numpy and scipy compute on one thread; torch's is left as it is.

    With more, the last bits of eigenvectors and the like depend on how many there are, which is not the same
    in a driver and in a trial, and those that wait keep their processors busy for a while after each product.
    A library that is loaded later is not limited: who loads scipy asks again.
    """
    with _blas("scipy.linalg" in sys.modules).limit(limits=1):
        yield


@cache  # looking for libraries takes a millisecond: once, and once more when scipy is loaded
def _blas(_scipy: bool) -> ThreadpoolController:
    """Return the BLAS that wheels of numpy bring along, and those of scipy if it is loaded."""
    return ThreadpoolController().select(prefix="libscipy_openblas")


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = {"python": platform.python_version(), "cpu": _cpu()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found.items())


def _cpu() -> str:
    """Return the processor's name, as "Intel(R) Xeon(R) Platinum 8481C CPU"; its architecture if unnamed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())

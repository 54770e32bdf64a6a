"""What this machine computes on. Torch says so, but loading it takes seconds, and some answers are plain."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

GPU_FILES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")
"""In /dev, of which Linux has one wherever torch finds a GPU: NVIDIA's, Jetson's, that of WSL, AMD's."""
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
"""Processor flags with which oneDNN, and so torch, computes in bf16; there are other ways."""
LIMITS = {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"}
"""Variables that keep oneDNN from using all that the processor has."""

MPS_PROCESS = "nvidia-cuda-mps"
"""How the names of its processes begin, of which Linux keeps fifteen characters."""


@cache
def has_gpu() -> bool:
    """Return whether torch finds a GPU; loads torch unless there plainly is none."""
    if "torch" not in sys.modules and sys.platform == "linux" and not _gpu_files(Path("/dev")):
        return False
    import torch

    return torch.cuda.is_available()


@cache
def cpu_has_bf16() -> bool:
    """Return whether torch computes in bf16 on this processor; loads torch unless it plainly does."""
    if "torch" not in sys.modules and not LIMITS & os.environ.keys() and _flags() >= AVX512:
        return True
    import torch

    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def computes_bf16(device: str) -> bool:
    """Return whether this machine's CPU or GPU computes in bf16, rather than emulating it."""
    if device == "cpu":
        return cpu_has_bf16()
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def free_cached() -> None:
    """Give memory of GPUs that torch keeps for later back to them: other processes may need it now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def mps_runs(processes: Path = Path("/proc")) -> bool:
    """Return whether NVIDIA's multi-process service runs here, which lets processes share a GPU's cores."""
    for name in processes.glob("[0-9]*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            if name.read_text(encoding="utf-8").startswith(MPS_PROCESS):
                return True
    return False


def _gpu_files(devices: Path) -> bool:
    return any(True for name in GPU_FILES for _ in devices.glob(name))


def _flags() -> set[str]:
    """Return the flags of the first processor; none where Linux does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.split() for line in lines if line.startswith("flags")), ()))

"""What surrounds training on a device: precision, deterministic algorithms and seeds, put back afterwards."""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bdtune.engine.hardware import computes_bf16
from bdtune.engine.key import derive_seed
from bdtune.engine.remarks import remark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.numerics import Numerics


def device_of(numerics: Numerics) -> torch.device:
    """Return the device that training runs on."""
    return torch.device(numerics.resolved().device)


def dtype_of(numerics: Numerics) -> torch.dtype:
    """Return the type of the network's input and activations; weights and losses are float32 either way."""
    return torch.bfloat16 if numerics.resolved().precision == "bf16" else torch.float32


def generator(seed: int, *names: str | int) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the names alone."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's global generators inside, and leave them outside as they were.

    For what draws from them: weight initialisation and dropout.
    """
    cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(derive_seed(seed, *names))
        yield


def autocast(numerics: Numerics) -> torch.autocast:
    """Return the context in which convolutions and products run in bf16, if at all.

    One per forward pass: while it is open it keeps weights as it first rounded them.
    """
    resolved = numerics.resolved()
    return torch.autocast(resolved.device, torch.bfloat16, enabled=resolved.precision == "bf16")


def say_if_emulated(numerics: Numerics) -> None:
    """Remark that a training's bf16 is emulated here: the driver, which chose it, has another device."""
    settled = numerics.resolved()
    if settled.precision == "bf16" and not computes_bf16(settled.device):
        text = "bf16 is emulated on this device, which is slow: set numerics.precision=fp32"
        remark(f"{text}, or compute on other nodes")


def _deterministic_mode(wanted: bool, *, warn_only: bool) -> None:
    """Do as `torch.use_deterministic_algorithms`, without loading torch's compiler: 2 s in each process."""
    torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if wanted else "default")


@contextmanager
def full_float32(*, tf32: bool = False) -> Iterator[None]:
    """Let float32 convolutions and products keep their 24 bits, or round them off to TF32.

    By default torch takes TF32 for convolutions on a GPU; a caller may have allowed less for products too.
    """
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


@contextmanager
def deterministic(numerics: Numerics) -> Iterator[None]:
    """Use deterministic algorithms inside, where asked for, and float32 in full unless TF32 is."""
    settled = numerics.resolved()
    wanted, device = settled.deterministic, settled.device
    memory: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    if wanted and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not repeatable without
    # On a GPU a few operations (max pooling's gradient) have no deterministic form; they run all the same
    _deterministic_mode(wanted, warn_only=device == "cuda")
    memory.fill_uninitialized_memory = False  # costs a pass over every new tensor
    benchmark = settled.cudnn_benchmark
    torch.backends.cudnn.benchmark = not wanted if benchmark is None else benchmark
    try:
        with warnings.catch_warnings(), full_float32(tf32=settled.tf32):
            warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation")
            yield
    finally:
        _deterministic_mode(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]
        torch.backends.cudnn.benchmark = before[3]

"""Networks of trainings compiled by torch, part by part: weights keep their names, copies are not compiled.

Only passes of a training go through compiled code. Whatever is counted or decided, and whatever looks inside
a network by hooks, passes it as it was written: see `uncompiled` of `bdtune.plugins.network`.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from bdtune.errors import Problem, UserError

if TYPE_CHECKING:
    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.network import Network


def begin(numerics: Numerics) -> None:
    """Forget what was compiled for the training before, where this one is compiled.

    Torch gives up compiling code that it has compiled for several networks. Raises `UserError` where there is
    nothing to compile with.
    """
    if not numerics.compile:
        return
    _check(numerics.resolved().device)
    torch.compiler.reset()
    from torch._inductor import config

    config.fallback_random = True  # dropout draws what it draws uncompiled


def compile_parts(network: Network, numerics: Numerics) -> None:
    """Compile the parts of a network but its head, each when it first passes a batch of a size."""
    if numerics.compile:
        for part in network.children():
            if part is not network.head:  # it is small, and read by hooks
                part.compile(dynamic=False)


def _check(device: str) -> None:
    """Raise `UserError` where torch has no compiler for a device."""
    hint = "Or leave numerics.compile false"
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            expected = "expected triton, with which torch compiles for GPUs"
            raise UserError(Problem("numerics.compile", expected, "none installed", hint=hint))
        return
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        expected = "expected a C++ compiler (g++ or clang++, or the one that CXX names)"
        raise UserError(Problem("numerics.compile", expected, "none", hint=hint)) from None

"""Networks and optimizer states as named arrays, and back: what artefacts and checkpoints hold."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bdtune.training.compiled import compile_parts
from bdtune.training.session import device_of, seeded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network

PREFIX = "model."
HEAD = PREFIX + "head."


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor that shares the array's memory; nobody may write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array, order="C"))


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy of the tensor's values as a C-contiguous array."""
    return np.array(tensor.detach().cpu().numpy(), order="C", copy=True)


def module_arrays(module: torch.nn.Module, prefix: str = PREFIX, skip: str = "\0") -> dict[str, np.ndarray]:
    """Return a module's weights and buffers under `prefix`, without the names that start with `skip`."""
    state = {prefix + name: value for name, value in module.state_dict().items()}
    return {name: as_array(value) for name, value in state.items() if not name.startswith(skip)}


def modules_arrays(modules: Mapping[str, torch.nn.Module]) -> dict[str, np.ndarray]:
    """Return the weights and buffers of several modules, each under its own name."""
    found: dict[str, np.ndarray] = {}
    for name, module in modules.items():
        found |= module_arrays(module, f"{name}.")
    return found


def load_module(module: torch.nn.Module, arrays: Mapping[str, np.ndarray], prefix: str = PREFIX) -> None:
    """Copy weights and buffers under `prefix` into a module; only a network's head may be missing."""
    state = {
        name.removeprefix(prefix): as_tensor(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    absent, unknown = module.load_state_dict(state, strict=False)
    absent = [name for name in absent if not (prefix + name).startswith(HEAD)]
    if absent or unknown:
        raise ValueError(f"weights do not fit the network: {len(absent)} absent, unknown {unknown[:3]}")


def new_network(
    model: Model, data: ImageSet, seed: int, numerics: Numerics, init: Artefact | None = None
) -> Network:
    """Build a network to be trained, on the device, channels last, compiled where that is asked for.

    Weights are drawn from `seed`, or taken from `init`.
    """
    with seeded(seed, "weights"):
        network = model.build(data.num_classes, data.image_shape)
    if init is not None:
        load_module(network, init.arrays)
    compile_parts(network, numerics)
    return network.to(device_of(numerics)).to(memory_format=torch.channels_last)


def optimizers_arrays(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, np.ndarray]:
    """Return the tensors of several optimizers as `optimizer.<optimizer>.<index>.<name>`."""
    return {
        f"optimizer.{own}.{index}.{name}": as_array(value)
        for own, optimizer in optimizers.items()
        for index, slots in optimizer.state_dict()["state"].items()
        for name, value in slots.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, arrays: Mapping[str, np.ndarray], prefix: str) -> None:
    """Put the tensors of `optimizers_arrays` under a prefix back, in the memory layout of their weights."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, array in arrays.items():
        if not key.startswith(prefix):
            continue
        index, _, name = key.removeprefix(prefix).partition(".")
        value = as_tensor(array).clone()
        weight = weights[int(index)]
        if value.shape == weight.shape:  # fused kernels walk weight and state side by side
            value = torch.empty_like(weight, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

"""What a training step takes of a GPU's memory, worked out from shapes before it is tried.

Counted are the images that lie on the device, weights, gradients, what the optimizer keeps, and what the
forward pass saves for the way back: at its end all of them are there. Not counted are the workspaces of
convolutions and what a training holds besides (a teacher, a discriminator): it takes a little more.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bdtune.engine.hardware import free_cached
from bdtune.engine.remarks import remark
from bdtune.errors import DeviceFullError
from bdtune.training.batches import DEVICE_SHARE
from bdtune.training.session import autocast, device_of, dtype_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.model import Model
    from bdtune.training.torch_stage import TorchStage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepMemory:
    """Bytes on the device at the peak of a training step on `batch` images."""

    batch: int
    weights: int
    """With buffers."""
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass saves for the way back, its input included."""
    images: int = 0
    """Of the data set."""
    batch_norm: bool = False
    """Whether the network has batch norm, so that a batch must pass as a whole."""

    @property
    def step(self) -> int:
        """All but the data set."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Room:
    """Bytes of a device that this process can still take, and of the whole device."""

    free: int
    total: int


def room_on(device: torch.device) -> Room | None:
    """Return the room on a GPU, within the part of it that this process may take; None for a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    cached = torch.cuda.memory_reserved(device) - used
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total) - used
    return Room(min(free + cached, allowed), total)


@lru_cache(maxsize=64)
def step_memory(
    model: Model,
    classes: int,
    image_shape: tuple[int, int, int],
    images: int,
    *,
    moments: int,
    numerics: Numerics,
) -> StepMemory:
    """Return what a step on so many images (H, W, C) takes, its data set aside.

    `moments`: tensors of the weights' sizes that the optimizer keeps. Nothing is computed or allocated: all
    tensors are fake.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    on_cpu = numerics.resolved().model_copy(update={"device": "cpu"})  # sizes are those of any device
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with torch.random.fork_rng(devices=[]), FakeTensorMode():
        network = model.build(classes, image_shape).train()
        held = {each.untyped_storage()._cdata for each in [*network.parameters(), *network.buffers()]}
        height, width, channels = image_shape
        seen = torch.empty(images, channels, height, width, dtype=dtype_of(on_cpu))
        keep(seen)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(on_cpu):
            logits = network(seen)
        weights = sum(each.nbytes for each in network.parameters())
        buffers = sum(each.nbytes for each in network.buffers())
        activations = sum(storage.nbytes() for name, storage in saved.items() if name not in held)
        del logits
        batch_norm = any(isinstance(part, _BatchNorm) for part in network.modules())
    return StepMemory(
        images, weights + buffers, weights, moments * weights, activations, batch_norm=batch_norm
    )


def needed(stage: TorchStage, inputs: Mapping[str, Any], numerics: Numerics) -> StepMemory | None:
    """Return what a step of a training with these inputs takes; None where its shapes say nothing."""
    data, model, subset = (inputs.get(name) for name in ("data", "model", "subset"))
    if data is None or model is None:
        return None
    samples = len(data) if subset is None else len(subset.arrays["ids"])
    batch = stage.images_per_step(samples)
    if not batch:
        return None
    settled, moments = numerics.resolved(), stage.moments()

    def of(images: int) -> StepMemory:
        return step_memory(
            model, data.num_classes, data.image_shape, images, moments=moments, numerics=settled
        )

    step = of(batch)
    if settled.micro_batch is not None and stage.splits and not step.batch_norm:
        step = of(min(batch, settled.micro_batch))
    resident = isinstance(data.images, np.ndarray)  # a stream stays in the host's memory
    return replace(step, images=samples * math.prod(data.image_shape) if resident else 0)


def shortage(need: StepMemory, room: Room) -> str:
    """Return in words what a step lacks, "" where it has room enough.

    A data set that would take too much of the room stays in the host's memory, as `DeviceSet` has it.
    """
    beside = need.images if need.images <= DEVICE_SHARE * room.free else 0
    if need.step + beside <= room.free:
        return ""
    there = f"the GPU has {_size(room.free)} of {_size(room.total)} free"
    return f"{in_words(replace(need, images=beside))}; {there}"


def in_words(need: StepMemory) -> str:
    """Return what a step needs, part by part."""
    around = need.step - need.activations
    data = f", {_size(need.images)} data set" if need.images else ""
    return (
        f"a step on {need.batch} images needs about {_size(need.step + need.images)} of GPU memory "
        f"({_size(need.activations)} activations, {_size(around)} weights, gradients and optimizer{data})"
    )


def advice(*, splits: bool) -> str:
    """Return what a user can do where the memory of a device does not suffice."""
    parts = "set numerics.micro_batch, " if splits else ""
    return (
        f"Make batch_size or the network smaller, {parts}give each trial a larger part of a GPU "
        "(resources.gpu), or compute elsewhere (numerics.device)"
    )


def _size(count: int) -> str:
    """Return bytes as "0.42 MB", "310 MB", "7.5 GB" or "139 GB"."""
    scaled, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{scaled:.2g} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"


class Guard:
    """What is said of a training's memory: before it begins, and when it had too little."""

    def __init__(self, stage: TorchStage, inputs: Mapping[str, Any], numerics: Numerics) -> None:
        self._stage, self._inputs, self._numerics = stage, inputs, numerics
        self._device = device_of(numerics)

    def look(self) -> None:
        """Remark that the device has too little room for the training, if so; it is tried all the same.

        What is counted is a little less than what is taken, and other processes may give room back.
        """
        room = room_on(self._device)
        need = None if room is None else self._needed()
        if room is not None and need is not None and (text := shortage(need, room)):
            remark(f"{text}. {advice(splits=self._stage.splits and not need.batch_norm)}")

    def failure(self, why: str, coupling: str) -> DeviceFullError:
        """Return the error of a training that the device had no memory for; frees what it left there.

        `why` is what torch says, `coupling` why its batches could not be halved.
        """
        free_cached()
        need, whole = self._needed(), f", and batches cannot be halved, as {coupling}" if coupling else ""
        known = f": {in_words(need)}" if need is not None else ""
        first = why.strip().split(". ")
        said = ". ".join(first[:2]).rstrip(".")
        text = f"out of memory on {self._device}{known}{whole}. {advice(splits=False)}. torch: {said}"
        return DeviceFullError(text)

    def _needed(self) -> StepMemory | None:
        try:
            return needed(self._stage, self._inputs, self._numerics)
        except Exception as error:  # a network of one's own that fake tensors cannot pass
            log.info("%s: memory cannot be estimated: %s", self._stage.name, error)
            return None

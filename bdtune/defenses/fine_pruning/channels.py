"""The channels that fine-pruning prunes: where they are, how active they are, and the network without some.

A channel is pruned by zeroing what reads it: the classifier then answers as if the channel were always zero.
Everything is computed in float32, in evaluation mode, without augmentation.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch

from bdtune.networks.resnet import last_block
from bdtune.training import session
from bdtune.training.augment import Augmentation
from bdtune.training.batches import images_of, in_order
from bdtune.training.predict import PIXELS, trained_network
from bdtune.training.weights import as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from torch import Tensor, nn

    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network

Layer = Literal["features", "inner"]
Pooling = Literal["mean", "max"]


def reader_of(network: Network, layer: Layer) -> nn.Linear | nn.Conv2d:
    """Return what reads the channels: the head, or the second convolution of the last residual block."""
    reader: nn.Linear | nn.Conv2d = network.head if layer == "features" else last_block(network).reader
    return reader


def silence(reader: nn.Linear | nn.Conv2d, pruned: Tensor) -> None:
    """Zero the weights that read the channels with pruned bool [C]."""
    with torch.no_grad():
        reader.weight[:, pruned] = 0


@dataclass(frozen=True)
class Cut:
    """A network in two parts, so that what lies before the pruned channels is computed once."""

    front: Callable[[Tensor], Tensor]
    tail: Callable[[Tensor], Tensor]  # from what `front` gives to logits
    reader: nn.Linear | nn.Conv2d

    @classmethod
    def of(cls, network: Network, layer: Layer) -> Cut:
        """Cut a network before its head, or before its last residual block."""
        reader = reader_of(network, layer)
        if layer == "features":
            return cls(network.features, network.head, reader)
        block = last_block(network)
        return cls(block.before, lambda entering: network.head(block.rest(entering).mean((2, 3))), reader)

    def classes(self, entering: Sequence[Tensor], pruned: Tensor) -> Tensor:
        """Return the predicted classes int64 [N] of images that `front` has seen, without pruned channels."""
        kept = (~pruned).float()

        def mask(_reader: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0] * kept.view(-1, *(1,) * (inputs[0].ndim - 2)),)

        hook = self.reader.register_forward_pre_hook(mask)
        try:
            return torch.cat([self.tail(each).argmax(1) for each in entering])
        finally:
            hook.remove()


class Looking:
    """A trained network in evaluation mode, and images on their way through it."""

    def __init__(self, model: Model, data: ImageSet, weights: Artefact, numerics: Numerics) -> None:
        self.network = trained_network(model, data, weights, numerics)
        self.device = session.device_of(numerics)
        self._see = Augmentation.of("none", data)

    def inputs(self, data: ImageSet) -> Iterator[Tensor]:
        """Yield the network's inputs [n, C, H, W], in id order."""
        for _, images in in_order(data, images_of(PIXELS, data)):
            yield self._see(as_tensor(images).to(self.device))

    def activations(self, data: ImageSet, layer: Layer, pooling: Pooling, *, absolute: bool) -> Tensor:
        """Return how active each channel is in each image, float32 [N, C], over its positions."""
        found = []
        for images in self.inputs(data):
            maps = self._maps(images, layer)
            maps = maps.abs() if absolute else maps
            found.append(maps.mean((2, 3)) if pooling == "mean" else maps.amax((2, 3)))
        return torch.cat(found)

    def _maps(self, images: Tensor, layer: Layer) -> Tensor:
        """Return the channels [n, C, H, W]; features that are no maps are taken as maps of one position."""
        with self._read(reader_of(self.network, layer)) as read:
            _, maps = self.network.with_maps(images)
        if layer == "inner":
            return read[0]
        last = [*maps.values()][-1] if maps else None
        is_pooled = last is not None and last.shape[1] == self.network.feature_dim
        return last if last is not None and is_pooled else read[0][:, :, None, None]

    @contextmanager
    def _read(self, reader: nn.Module) -> Iterator[list[Tensor]]:
        """Record what a module is given."""
        read: list[Tensor] = []
        hook = reader.register_forward_pre_hook(lambda _m, inputs: read.append(inputs[0]))
        try:
            yield read
        finally:
            hook.remove()


def some_of(data: ImageSet, ids: np.ndarray) -> ImageSet:
    """Return the images of rising ids, with their labels."""
    return replace(data, images=data.images_at(ids), labels=data.labels[ids])

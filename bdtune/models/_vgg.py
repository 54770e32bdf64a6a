"""VGG bodies with batch norm, out of torchvision's layer maker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torchvision.models.vgg import make_layers

from bdtune.models._network import Pooled, initialise

if TYPE_CHECKING:
    from collections.abc import Sequence


def vgg_network(num_classes: int, channels: int, layout: Sequence[int | str]) -> Pooled:
    """Return 3x3 convolutions of the given widths ("M" halves the side) with one linear layer on top."""
    body = make_layers(list(layout), batch_norm=True)
    if channels != 3:
        body[0] = nn.Conv2d(channels, body[0].out_channels, 3, padding=1)
    for part in body:
        if isinstance(part, nn.MaxPool2d):
            part.ceil_mode = True  # a side of 1 stays 1, so that 16-pixel images pass five poolings
    width = [size for size in layout if isinstance(size, int)][-1]
    network = Pooled(body, width, num_classes)
    initialise(network)
    return network

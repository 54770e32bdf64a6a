"""VGG networks, out of torchvision's layer maker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models.vgg import make_layers

from bdtune.plugins.network import Network, Pooled, initialise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

POSITIONS, HIDDEN = 7, 4096
"""Of torchvision's classifier: positions along a side, width of each hidden layer."""


def vgg_network(
    num_classes: int, channels: int, layout: Sequence[int | str], *, batch_norm: bool = True
) -> Pooled:
    """Return 3x3 convolutions of the given widths ("M" halves the side) with one linear layer on top."""
    body = _convolutions(channels, layout, batch_norm)
    for part in body:
        if isinstance(part, nn.MaxPool2d):
            part.ceil_mode = True  # a side of 1 stays 1, so that 16-pixel images pass five poolings
    network = Pooled(body, _last_width(layout), num_classes)
    initialise(network)
    return network


def three_layered_vgg(
    num_classes: int, channels: int, layout: Sequence[int | str], *, batch_norm: bool = True
) -> ThreeLayered:
    """Return torchvision's form: 3x3 convolutions of the given widths with three linear layers on top."""
    network = ThreeLayered(_convolutions(channels, layout, batch_norm), _last_width(layout), num_classes)
    initialise(network)
    return network


class ThreeLayered(Network):
    """A convolutional body, seen at 7x7 positions by two hidden layers and a linear head."""

    def __init__(self, body: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = body
        layers: list[nn.Module] = []
        for width in (channels * POSITIONS**2, HIDDEN):
            layers += [nn.Linear(width, HIDDEN), nn.ReLU(inplace=True), nn.Dropout()]
        self.hidden = nn.Sequential(*layers)
        self.head = nn.Linear(HIDDEN, num_classes)

    def features(self, images_NCHW: Tensor) -> Tensor:
        seen = self.body(images_NCHW)
        if seen.shape[2:] == (1, 1):  # the same as pooling, which has no deterministic gradient on a GPU
            seen = seen.expand(-1, -1, POSITIONS, POSITIONS)
        else:
            seen = adaptive_avg_pool2d(seen, POSITIONS)
        return self.hidden(seen.flatten(1))


def _convolutions(channels: int, layout: Sequence[int | str], batch_norm: bool) -> nn.Sequential:
    body = make_layers(list(layout), batch_norm=batch_norm)
    if channels != 3:
        body[0] = nn.Conv2d(channels, body[0].out_channels, 3, padding=1)
    return body


def _last_width(layout: Sequence[int | str]) -> int:
    return [size for size in layout if isinstance(size, int)][-1]

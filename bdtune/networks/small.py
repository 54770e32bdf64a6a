"""Bodies of LeNet, full and of low capacity, and of the low-capacity MobileNetV2."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from torch import nn
from torchvision.ops.misc import Conv2dNormActivation

from bdtune.plugins.network import Network, Pooled, initialise

if TYPE_CHECKING:
    from torch import Tensor

KERNEL = 5


class LeNetNetwork(Network):
    """Two 5x5 convolutions with ReLU, each halved by max pooling, then linear layers, the last one to K."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        *,
        channels: tuple[int, int],
        widths: tuple[int, ...],
    ) -> None:
        super().__init__()
        height, width = ((side - KERNEL + 1) // 2 for side in image_shape[:2])
        height, width = ((side - KERNEL + 1) // 2 for side in (height, width))
        if min(height, width) < 1:
            raise ValueError(f"LeNet needs images of at least 16 pixels a side, got {image_shape}")
        layers: list[nn.Module] = []
        for c_in, c_out in itertools.pairwise((image_shape[2], *channels)):
            layers += [nn.Conv2d(c_in, c_out, KERNEL), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        layers.append(nn.Flatten())
        for d_in, d_out in itertools.pairwise((channels[1] * height * width, *widths)):
            layers += [nn.Linear(d_in, d_out), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def features(self, images_NCHW: Tensor) -> Tensor:
        # contiguous: Flatten would otherwise order channels-last images differently
        return self.body(images_NCHW.contiguous())


class NarrowInvertedResidual(nn.Module):
    """Expand, filter per channel, project; the widths are free, unlike torchvision's expansion factor."""

    def __init__(self, c_in: int, expand: int, project: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv2dNormActivation(c_in, expand, 1, activation_layer=nn.ReLU6),
            Conv2dNormActivation(expand, expand, 3, stride, groups=expand, activation_layer=nn.ReLU6),
            Conv2dNormActivation(expand, project, 1, activation_layer=None),
        )
        self.residual = stride == 1 and c_in == project

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, c_in, H, W] to [N, project, H/stride, W/stride]."""
        return x + self.layers(x) if self.residual else self.layers(x)


def narrow_mobilenet(num_classes: int, channels: int) -> Pooled:
    """Return LfD's MobileNetV2-S."""
    body = nn.Sequential(
        Conv2dNormActivation(channels, 4, 3, activation_layer=nn.ReLU6),
        NarrowInvertedResidual(4, 4, 8, 1),
        NarrowInvertedResidual(8, 4, 8, 2),
        NarrowInvertedResidual(8, 8, 8, 1),
        Conv2dNormActivation(8, 16, 1, activation_layer=nn.ReLU6),
    )
    network = Pooled(body, 16, num_classes)
    initialise(network)
    return network

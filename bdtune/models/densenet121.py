"""DenseNet-121: 7.0 million parameters, features of width 1024.

Source: Densely connected convolutional networks (Huang et al., 2017), table 1; torchvision's network.
Departures: for small images a 3x3 stem of stride 1 without norm or pooling, as in the paper's CIFAR networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.model import Model, Stem, small_images

if TYPE_CHECKING:
    from bdtune.plugins.network import Network


class DenseNet121(Model):
    """Four dense blocks with growth 32."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet stem for images larger than 64 pixels."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from torch import nn
        from torchvision.models import densenet121

        from bdtune.plugins.network import Pooled

        body = densenet121(weights=None).features
        channels = image_shape[2]
        if small_images(self.stem, image_shape):
            body.conv0 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
            body.norm0, body.relu0, body.pool0 = nn.Identity(), nn.Identity(), nn.Identity()
        elif channels != 3:
            body.conv0 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        body.append(nn.ReLU(inplace=True))  # torchvision applies it between features and classifier
        return Pooled(body, 1024, num_classes)

"""MobileNetV2: 2.2 million parameters, features of width 1280.

Source: Inverted residuals and linear bottlenecks (Sandler et al., 2018), table 2; torchvision's network.
Departures: for small images stride 1 in the first layer and the second group; no dropout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.model import Model, Stem, small_images

if TYPE_CHECKING:
    from bdtune.plugins.network import Network


class MobileNetV2(Model):
    """Seventeen inverted residual blocks."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet strides for images larger than 64 pixels."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from torch import nn
        from torchvision.models.mobilenetv2 import MobileNetV2 as Original

        from bdtune.plugins.network import Pooled

        small = small_images(self.stem, image_shape)
        # expansion, channels, blocks, stride of each group
        setting = [
            [1, 16, 1, 1],
            [6, 24, 2, 1 if small else 2],
            [6, 32, 3, 2],
            [6, 64, 4, 2],
            [6, 96, 3, 1],
            [6, 160, 3, 2],
            [6, 320, 1, 1],
        ]
        body = Original(inverted_residual_setting=setting).features
        first: nn.Conv2d = body[0][0]
        if small:
            first.stride = (1, 1)
        if image_shape[2] != first.in_channels:
            body[0][0] = nn.Conv2d(image_shape[2], 32, 3, 1 if small else 2, 1, bias=False)
        return Pooled(body, 1280, num_classes)

"""ResNet-34: 21.3 million parameters at width 64, features of width 512.

Source: Deep residual learning for image recognition (He et al., 2016), table 1; torchvision's basic block.
Departures: the CIFAR stem (3x3, stride 1, no pooling) that the field uses for small images.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.networks.residual import Residual


class ResNet34(Residual):
    """Residual network with 34 layers."""

    blocks: ClassVar[tuple[int, ...]] = (3, 4, 6, 3)

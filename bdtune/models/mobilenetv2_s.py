"""MobileNetV2-S: LfD's low-capacity MobileNetV2, 942 parameters, features of width 16.

Source: Learning from Distinction (ACM MM 2024), stem 4, blocks 4/4/8, 4/4/8 and 8/8/8, last layer 16.
Departures: strides, which the paper leaves open: 1 in the stem and the first block, 2 in the second, then 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.model import Model

if TYPE_CHECKING:
    from bdtune.plugins.network import Network


class MobileNetV2S(Model):
    """Three narrow inverted residual blocks."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.networks.small import narrow_mobilenet

        return narrow_mobilenet(num_classes, image_shape[2])

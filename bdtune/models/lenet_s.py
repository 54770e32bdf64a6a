"""LeNet-S: LfD's low-capacity LeNet, 1,358 parameters on 32-pixel images, features of width 20.

Source: Learning from Distinction (ACM MM 2024), convolutions of 1 and 2 channels, linear 20 and K.
Departures: 5x5 kernels without padding, ReLU and 2x2 max pooling, which the paper leaves open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.model import Model, too_small

if TYPE_CHECKING:
    from bdtune.errors import Problem
    from bdtune.plugins.network import Network


LEAST_SIDE = 16
"""Pixels that two convolutions and two poolings leave something of."""


class LeNetS(Model):
    """Two convolutions and two linear layers."""

    def check(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        return too_small(image_shape, LEAST_SIDE)

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.networks.small import LeNetNetwork

        return LeNetNetwork(num_classes, image_shape, channels=(1, 2), widths=(20,))

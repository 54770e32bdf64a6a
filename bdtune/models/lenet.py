"""LeNet: LeNet-5 with ReLU and max pooling, 62,006 parameters on 32-pixel images, features of width 84.

Source: "Gradient-based learning applied to document recognition" (LeCun et al., 1998), section II.B.
Departures: ReLU for its scaled tanh, max pooling for its trained averages, a second convolution that reads
all maps of the first, a linear output for radial units, as many input channels as the images have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.model import Model, too_small

if TYPE_CHECKING:
    from bdtune.errors import Problem
    from bdtune.plugins.network import Network


LEAST_SIDE = 16
"""Pixels that two convolutions and two poolings leave something of."""


class LeNet(Model):
    """Two convolutions and three linear layers."""

    def check(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        return too_small(image_shape, LEAST_SIDE)

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.networks.small import LeNetNetwork

        return LeNetNetwork(num_classes, image_shape, channels=(6, 16), widths=(120, 84))

"""VGG-S: LfD's low-capacity VGG, eight convolutions, 0.18 million parameters.

Source: Learning from Distinction (ACM MM 2024), teacher widths 4/8/16/16/32/32/32/512 in the VGG-11 layout.
Departures: batch norm and one linear layer, which the paper leaves open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.model import Model

if TYPE_CHECKING:
    from bdtune.plugins.network import Network

LAYOUT = (4, "M", 8, "M", 16, 16, "M", 32, 32, "M", 32, 512, "M")


class VGGS(Model):
    """A narrow VGG-11."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.networks.vgg import vgg_network

        return vgg_network(num_classes, image_shape[2], LAYOUT)

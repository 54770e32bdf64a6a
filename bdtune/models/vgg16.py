"""VGG-16 with batch norm: 14.7 million parameters, features of width 512.

Source: Very deep convolutional networks (Simonyan and Zisserman, 2015), table 1, column D; torchvision.
Departures: batch norm, and one linear layer on averaged features instead of three: the field's CIFAR form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.models._base import Model

if TYPE_CHECKING:
    from bdtune.models._network import Network


class VGG16(Model):
    """Thirteen 3x3 convolutions in five groups."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from torchvision.models.vgg import cfgs

        from bdtune.models._vgg import vgg_network

        return vgg_network(num_classes, image_shape[2], cfgs["D"])

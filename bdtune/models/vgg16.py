"""VGG-16 with batch norm: 14.7 million parameters, features of width 512.

Source: Very deep convolutional networks (Simonyan and Zisserman, 2015), table 1, column D; torchvision.
Departures: batch norm, and one linear layer on averaged features instead of three: the field's CIFAR form.
Both can be as in the paper, which is the network that BackdoorBench takes: 134 million parameters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bdtune.plugins.model import Model

if TYPE_CHECKING:
    from bdtune.plugins.network import Network


class VGG16(Model):
    """Thirteen 3x3 convolutions in five groups."""

    batch_norm: bool = True
    """Whether a norm follows each convolution; the paper's network has none."""
    classifier: Literal["linear", "imagenet"] = "linear"
    """linear: one layer on averaged features; imagenet: the paper's three, with dropout."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from torchvision.models.vgg import cfgs

        from bdtune.networks.vgg import three_layered_vgg, vgg_network

        make = vgg_network if self.classifier == "linear" else three_layered_vgg
        return make(num_classes, image_shape[2], cfgs["D"], batch_norm=self.batch_norm)

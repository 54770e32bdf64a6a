"""ResNet-34: 21.3 million parameters at width 64, features of width 512.

Source: Deep residual learning for image recognition (He et al., 2016), table 1; torchvision's basic block.
Departures: the CIFAR stem (3x3, stride 1, no pooling) that the field uses for small images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from bdtune.models._base import Model, Stem, small_images

if TYPE_CHECKING:
    from bdtune.models._network import Network


class ResNet34(Model):
    """Residual network with 34 layers."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet stem for images larger than 64 pixels."""
    width: int = Field(64, ge=1)
    """Channels of the first stage; each later stage doubles them."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.models._resnet import residual_network

        return residual_network(
            num_classes,
            image_shape[2],
            blocks=(3, 4, 6, 3),
            widths=[self.width * factor for factor in (1, 2, 4, 8)],
            stem_width=self.width,
            small=small_images(self.stem, image_shape),
        )

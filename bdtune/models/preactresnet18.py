"""PreActResNet-18: ResNet-18 with norm and ReLU before each convolution.

Source: Identity mappings in deep residual networks (He et al., 2016), figure 4e and appendix.
Departures: the CIFAR stem for small images. Keeps the paper's last norm and ReLU, often left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from bdtune.models._base import Model, Stem, small_images

if TYPE_CHECKING:
    from bdtune.models._network import Network


class PreActResNet18(Model):
    """Pre-activation residual network with 18 layers."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet stem for images larger than 64 pixels."""
    width: int = Field(64, ge=1)
    """Channels of the first stage; each later stage doubles them."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.models._resnet import residual_network

        return residual_network(
            num_classes,
            image_shape[2],
            blocks=(2, 2, 2, 2),
            widths=[self.width * factor for factor in (1, 2, 4, 8)],
            stem_width=self.width,
            small=small_images(self.stem, image_shape),
            preact=True,
        )

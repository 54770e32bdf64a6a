"""ResNet-S1: LfD's smallest teacher, 2,606 parameters, features of width 1.

Source: Learning from Distinction (ACM MM 2024), teacher with one block per stage and 1/1/1/1 channels.
Departures: the paper states no stem width; the default is ResNet's 64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from bdtune.models._base import Model, Stem, small_images

if TYPE_CHECKING:
    from bdtune.models._network import Network


class ResNetS1(Model):
    """Four residual blocks of one channel; its logits have rank one."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet stem for images larger than 64 pixels."""
    stem_width: int = Field(64, ge=1)
    """Channels of the first convolution."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.models._resnet import residual_network

        return residual_network(
            num_classes,
            image_shape[2],
            blocks=(1, 1, 1, 1),
            widths=(1, 1, 1, 1),
            stem_width=self.stem_width,
            small=small_images(self.stem, image_shape),
        )

"""WRN: a wide residual network for small images; WRN-16-1, the default, has 0.18 million parameters.

Source: Wide residual networks (Zagoruyko and Komodakis, 2016), table 1, without dropout. WRN-16-1 is what ABL
trains, WRN-28-10 the paper's best. Departures: the ImageNet stem for images larger than 64 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from bdtune.plugins.model import Model, Stem, small_images

if TYPE_CHECKING:
    from bdtune.plugins.network import Network

WIDTHS = (16, 32, 64)
"""Channels of the three stages before they are widened; the first convolution has the first of them."""


class WRN(Model):
    """Pre-activation residual network of three wide stages."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet stem for images larger than 64 pixels."""
    depth: int = Field(16, ge=10)
    """Layers: 6 n + 4, with n blocks in each stage."""
    widen: int = Field(1, ge=1)
    """Factor of the channels of each stage."""

    @field_validator("depth")
    @classmethod
    def _whole_blocks(cls, depth: int) -> int:
        if (depth - 4) % 6:
            raise ValueError(f"expected 6 n + 4 layers (10, 16, 22, 28, ...), got {depth}")
        return depth

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.networks.resnet import residual_network

        return residual_network(
            num_classes,
            image_shape[2],
            blocks=((self.depth - 4) // 6,) * len(WIDTHS),
            widths=[self.widen * width for width in WIDTHS],
            stem_width=WIDTHS[0],
            small=small_images(self.stem, image_shape),
            preact=True,
            final_norm=True,
        )

"""What residual networks have in common as knobs; building one is in `resnet.py`, which needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdtune.plugins.model import Model, Stem, small_images

if TYPE_CHECKING:
    from bdtune.plugins.network import Network


class Residual(Model):
    """A residual network whose stages double their channels."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet stem for images larger than 64 pixels."""
    width: int = Field(64, ge=1)
    """Channels of the first stage; each later stage doubles them."""

    blocks: ClassVar[tuple[int, ...]]
    """Blocks of each stage."""
    preact: ClassVar[bool] = False
    """Whether norm and ReLU come before each convolution."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.networks.resnet import residual_network

        return residual_network(
            num_classes,
            image_shape[2],
            blocks=self.blocks,
            widths=[self.width * 2**stage for stage in range(len(self.blocks))],
            stem_width=self.width,
            small=small_images(self.stem, image_shape),
            preact=self.preact,
            final_norm=self._has_final_norm,
        )

    @property
    def _has_final_norm(self) -> bool:
        return self.preact


class ResidualTeacher(Model):
    """A low-capacity residual network with one block per stage (LfD)."""

    stem: Stem = "auto"
    """First layers; "auto" takes the ImageNet stem for images larger than 64 pixels."""
    stem_width: int = Field(64, ge=1)
    """Channels of the first convolution."""

    widths: ClassVar[tuple[int, ...]]
    """Channels of each stage."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        from bdtune.networks.resnet import residual_network

        return residual_network(
            num_classes,
            image_shape[2],
            blocks=(1,) * len(self.widths),
            widths=self.widths,
            stem_width=self.stem_width,
            small=small_images(self.stem, image_shape),
        )

"""One linear layer on the pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.model import Model

if TYPE_CHECKING:
    from bdtune.plugins.network import Network


class Linear(Model):
    """Built as fast as a network can be."""

    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        import numpy as np
        from torch import Tensor, nn

        from bdtune.plugins.network import Network

        class Flat(Network):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(int(np.prod(image_shape)), num_classes)

            def features(self, images_NCHW: Tensor) -> Tensor:
                return images_NCHW.flatten(1)

        return Flat()

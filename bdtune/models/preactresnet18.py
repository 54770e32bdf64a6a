"""PreActResNet-18: ResNet-18 with norm and ReLU before each convolution.

Source: Identity mappings in deep residual networks (He et al., 2016), figure 4e and appendix.
Departures: the CIFAR stem for small images. Keeps the paper's last norm and ReLU, often left out.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.networks.residual import Residual


class PreActResNet18(Residual):
    """Pre-activation residual network with 18 layers."""

    final_norm: bool = True
    """Whether norm and ReLU follow the last block, as in the paper; BackdoorBench's network has neither."""

    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
    preact: ClassVar[bool] = True

    @property
    def _has_final_norm(self) -> bool:
        return self.final_norm

"""PreActResNet-18: ResNet-18 with norm and ReLU before each convolution.

Source: Identity mappings in deep residual networks (He et al., 2016), figure 4e and appendix.
Departures: the CIFAR stem for small images. Keeps the paper's last norm and ReLU, often left out.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.models._residual import Residual


class PreActResNet18(Residual):
    """Pre-activation residual network with 18 layers."""

    blocks: ClassVar[tuple[int, ...]] = (2, 2, 2, 2)
    preact: ClassVar[bool] = True

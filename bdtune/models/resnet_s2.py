"""ResNet-S2: LfD's largest teacher (a ResNet-10), 4.9 million parameters, features of width 512.

Source: Learning from Distinction (ACM MM 2024), teacher with one block per stage and 64/128/256/512 channels.
Departures: the paper states no stem width; the default is ResNet's 64.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.networks.residual import ResidualTeacher


class ResNetS2(ResidualTeacher):
    """Four residual blocks of full width."""

    widths: ClassVar[tuple[int, ...]] = (64, 128, 256, 512)

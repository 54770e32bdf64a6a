"""ResNet-S: LfD's default teacher, 3,658 parameters, features of width 4.

Source: Learning from Distinction (ACM MM 2024), teacher with one block per stage and 2/2/2/4 channels.
Departures: the paper states no stem width; the default is ResNet's 64.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.networks.residual import ResidualTeacher


class ResNetS(ResidualTeacher):
    """Four residual blocks of two to four channels."""

    widths: ClassVar[tuple[int, ...]] = (2, 2, 2, 4)

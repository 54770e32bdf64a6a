"""ResNet-S1: LfD's smallest teacher, 2,606 parameters, features of width 1.

Source: Learning from Distinction (ACM MM 2024), teacher with one block per stage and 1/1/1/1 channels.
Departures: the paper states no stem width; the default is ResNet's 64.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.networks.residual import ResidualTeacher


class ResNetS1(ResidualTeacher):
    """Four residual blocks of one channel; its logits have rank one."""

    widths: ClassVar[tuple[int, ...]] = (1, 1, 1, 1)

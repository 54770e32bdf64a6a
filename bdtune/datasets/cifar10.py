"""CIFAR-10: 60,000 natural images of 32x32 pixels in ten classes.

Source: Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009), technical report; no licence
is stated, used in research throughout.
Departures: none. Standard deviations are those of the pixels; the often copied (0.2023, 0.1994, 0.2010) are
means of per-image deviations.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.datasets._cifar_files import Cifar


class Cifar10(Cifar):
    """CIFAR-10, 50,000 training and 10,000 test images."""

    title: ClassVar[str] = "CIFAR-10"
    archive: ClassVar[str] = "CIFAR10"
    parquet: ClassVar[str] = "cifar10"
    layouts: ClassVar[tuple[str, ...]] = ("torchvision's cifar-10-batches-py/",)
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)
    counts: ClassVar = {"train": ((5000,) * 10,), "test": ((1000,) * 10,)}

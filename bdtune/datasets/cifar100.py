"""CIFAR-100: 60,000 natural images of 32x32 pixels in a hundred classes (the fine labels).

Source: Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009), technical report; no licence
is stated, used in research throughout.
Departures: none.
"""

from __future__ import annotations

from typing import ClassVar

from bdtune.datasets._cifar_files import Cifar


class Cifar100(Cifar):
    """CIFAR-100, 500 training and 100 test images per class."""

    title: ClassVar[str] = "CIFAR-100"
    archive: ClassVar[str] = "CIFAR100"
    parquet: ClassVar[str] = "cifar100"
    layouts: ClassVar[tuple[str, ...]] = ("torchvision's cifar-100-python/",)
    num_classes: ClassVar[int] = 100
    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4865, 0.4409)
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)
    counts: ClassVar = {"train": ((500,) * 100,), "test": ((100,) * 100,)}

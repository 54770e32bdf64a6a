"""CIFAR-100: 60,000 natural images of 32x32 pixels in a hundred classes (the fine labels).

Source: Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009), technical report; no licence
is stated, used in research throughout.
Departures: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdtune.datasets._cifar_files import Cifar, cifar_records
from bdtune.reading.files import parquet_records, torchvision_download

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import Records, SplitName


class Cifar100(Cifar):
    """CIFAR-100, 500 training and 100 test images per class."""

    title: ClassVar[str] = "CIFAR-100"
    layouts: ClassVar[tuple[str, ...]] = (
        "cifar100/train.parquet with cifar100/test.parquet",
        "torchvision's cifar-100-python/",
    )
    num_classes: ClassVar[int] = 100
    mean: ClassVar[tuple[float, ...]] = (0.5071, 0.4865, 0.4409)
    std: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)
    counts: ClassVar = {"train": ((500,) * 100,), "test": ((100,) * 100,)}

    def records(self, split: SplitName, root: Path) -> Records | None:
        folder = root / "cifar100"
        found = parquet_records(folder, split)
        return found or cifar_records("CIFAR100", (root, folder), split, verify=self.verify)

    def download(self, root: Path) -> None:
        torchvision_download("CIFAR100", root)

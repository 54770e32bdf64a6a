"""Four classes of 8x8 images, each with another bright quadrant: made in memory, never missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.plugins.dataset import Dataset, Records

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.reading.files import SplitName

SIDE, CLASSES = 8, 4


class Tiny(Dataset):
    """40 training and 20 test images."""

    num_classes: ClassVar[int] = CLASSES
    mean: ClassVar[tuple[float, ...]] = (0.3, 0.3, 0.3)
    std: ClassVar[tuple[float, ...]] = (0.3, 0.3, 0.3)

    def records(self, split: SplitName, root: Path) -> Records:
        count, seed = (40, 0) if split == "train" else (20, 1)
        labels = np.arange(count) % CLASSES
        images = np.random.default_rng(seed).integers(0, 40, (count, SIDE, SIDE, 3), np.uint8)
        half = SIDE // 2
        for image, label in zip(images, labels, strict=True):
            row, column = divmod(int(label), 2)
            image[row * half : (row + 1) * half, column * half : (column + 1) * half] += 180
        return Records(labels, tuple("abcd"), arrays=images)

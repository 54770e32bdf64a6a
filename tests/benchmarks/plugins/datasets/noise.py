"""Random images in ten classes: data of any size where there is none at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.plugins.dataset import Dataset, Records

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.reading.files import SplitName


class Noise(Dataset):
    """Random images; a class has a colour of its own, so that there is something to learn."""

    train: int = Field(50_000, ge=20)
    """Training images."""
    test: int = Field(10_000, ge=20)
    """Test images."""
    side: int = Field(32, ge=4)
    """Pixels along an edge."""

    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, ...]] = (0.25, 0.25, 0.25)

    def records(self, split: SplitName, root: Path) -> Records:
        count = self.train if split == "train" else self.test
        labels = np.arange(count) % self.num_classes
        generator = np.random.default_rng(0 if split == "train" else 1)
        images = generator.integers(0, 224, (count, self.side, self.side, 3), dtype=np.uint8)
        images[..., 0] += (labels * 3).astype(np.uint8)[:, None, None]
        return Records(labels, arrays=images)

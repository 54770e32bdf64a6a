"""Two image sets as one: rows of the second come after those of the first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.plugins.data import ImageSet, ImageStream


@dataclass(frozen=True)
class Appended:
    """A stream of N images with n more, held in memory, as its last block."""

    first: ImageStream
    more: np.ndarray  # uint8 [n, H, W, C]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N + n, H, W, C]."""
        count, *image = self.first.shape
        height, width, channels = image
        return count + len(self.more), height, width, channels

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64 [n], images uint8 [n, H, W, C]) covering all images once."""
        yield from self.first.blocks(shuffle_seed)
        count = self.first.shape[0]
        yield np.arange(count, count + len(self.more)), self.more


def joined(first: ImageSet, second: ImageSet | None) -> ImageSet:
    """Return a set of N + n images with labels; the second's n images are held in memory."""
    if second is None:
        return first
    more = second.images_at(np.arange(len(second)))
    labels = np.concatenate([np.asarray(first.labels), np.asarray(second.labels)]).astype(np.int64)
    if isinstance(first.images, np.ndarray):
        return replace(first, images=np.concatenate([first.images, more]), labels=labels)
    return replace(first, images=Appended(first.images, more), labels=labels)

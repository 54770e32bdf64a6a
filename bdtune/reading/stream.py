"""Splits that do not fit in memory: windows of images in an order that a seed alone fixes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bdtune.engine.key import derive_seed
from bdtune.reading.images import mixed_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.reading.images import Selection

WINDOW_BYTES = 64 * 2**20
WINDOW_ROWS = 8192
_RUNS_PER_WINDOW = 16


@dataclass(frozen=True)
class Windows:
    """Cuts rows 0..total-1 into windows; shuffled, a window is `size / run` runs of `run` neighbours, mixed.

    Neighbours stay together because a Parquet file can only be read in runs of rows; single files and arrays
    have runs of one row, and the order is then a full permutation.
    """

    total: int
    size: int
    run: int

    def order(self, seed: int | None) -> Iterator[np.ndarray]:
        """Yield the rows (int64) of each window in turn: ascending without a seed, else fixed by it alone."""
        starts = np.arange(0, self.total, self.run)
        if seed is not None:
            starts = np.random.default_rng(derive_seed(seed, "runs")).permutation(starts)
        runs = max(1, self.size // self.run)
        for index, first in enumerate(range(0, len(starts), runs)):
            rows = (starts[first : first + runs, None] + np.arange(self.run)).reshape(-1)
            rows = rows[rows < self.total]
            if seed is not None:
                rows = np.random.default_rng(derive_seed(seed, "window", index)).permutation(rows)
            yield rows


@dataclass(frozen=True)
class FileStream:
    """The images of a selection, read from their files in process, window by window: an `ImageStream`."""

    selection: Selection
    window_rows: int | None = None
    """Rows per window; by default 64 MiB of images, at most 8,192."""

    @cached_property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, 3], from the first image."""
        _, height, width, channels = self.selection.read(np.arange(1)).shape
        return len(self.selection), height, width, channels

    @cached_property
    def windows(self) -> Windows:
        """How the rows are cut and shuffled."""
        total, *image = self.shape
        size = self.window_rows or min(WINDOW_ROWS, WINDOW_BYTES // int(np.prod(image)))
        size = max(_RUNS_PER_WINDOW, size)
        return Windows(total, size, size // _RUNS_PER_WINDOW if self.selection.records.parquet else 1)

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Return the images of sample ids, uint8 [n, H, W, 3]; raises `DataError` for other sizes."""
        images = self.selection.read(ids)
        if len(ids) and images.shape[1:] != self.shape[1:]:
            raise mixed_sizes({images.shape[1:3], self.shape[1:3]})
        return images

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64 [n], images uint8 [n, H, W, 3]) covering all rows once."""
        for ids in self.windows.order(shuffle_seed):
            yield ids, self.read(ids)

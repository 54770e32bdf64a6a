"""Splits that do not fit in memory: windows of images in an order that a seed alone fixes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from bdtune.engine.key import derive_seed
from bdtune.reading.decoded import map_name, open_map
from bdtune.reading.images import mixed_sizes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.reading.decoded import DecodedMap
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

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(range(0, self._run_count, self._runs))

    def order(self, seed: int | None) -> Iterator[np.ndarray]:
        """Yield the rows (int64) of each window in turn: ascending without a seed, else fixed by it alone."""
        starts = _starts(self._run_count, self.run, seed)
        return (self._window(starts, index, seed) for index in range(len(self)))

    def window(self, index: int, seed: int | None) -> np.ndarray:
        """Return the rows (int64) of one window of `order`."""
        return self._window(_starts(self._run_count, self.run, seed), index, seed)

    @property
    def _run_count(self) -> int:
        return -(-self.total // self.run)

    @property
    def _runs(self) -> int:
        """How many runs a window has."""
        return max(1, self.size // self.run)

    def _window(self, starts: np.ndarray, index: int, seed: int | None) -> np.ndarray:
        own = starts[index * self._runs : (index + 1) * self._runs]
        rows = (own[:, None] + np.arange(self.run)).reshape(-1)
        rows = rows[rows < self.total]
        if seed is None:
            return rows
        return np.random.default_rng(derive_seed(seed, "window", index)).permutation(rows)


@lru_cache(maxsize=2)
def _starts(count: int, run: int, seed: int | None) -> np.ndarray:
    """Return the first rows of all runs in their order; kept, as each window of an epoch asks for it."""
    starts = np.arange(count) * run
    return starts if seed is None else np.random.default_rng(derive_seed(seed, "runs")).permutation(starts)


@dataclass(frozen=True)
class FileStream:
    """The images of a selection, read in process, window by window: an `ImageStream`.

    Encoded images are decoded once on a node, into a memory map on its disk, where there is room for it.
    """

    selection: Selection
    window_rows: int | None = None
    """Rows per window; by default 64 MiB of images, at most 8,192."""
    map_name: str | None = None
    """Of the node's map; found from the files where it is not given."""
    keep: bool = True
    """Whether decoded images are kept in the map: not where they are read only once."""

    @cached_property
    def map(self) -> DecodedMap | None:
        """This node's map of the images; None of arrays, and where there is no room for one."""
        if not self._has_map:
            return None
        _, height, width, channels = self.shape
        name = self.map_name or map_name(self.selection)
        return open_map(self.selection, (height, width, channels), name)

    def named(self) -> FileStream:
        """Return the stream for other processes, which need not look at the files to find the map."""
        return replace(self, map_name=map_name(self.selection)) if self._has_map else self

    @property
    def _has_map(self) -> bool:
        return self.keep and self.selection.records.arrays is None

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
        images = self.selection.read(ids) if self.map is None else self.map.read(ids)
        if len(ids) and images.shape[1:] != self.shape[1:]:
            raise mixed_sizes({images.shape[1:3], self.shape[1:3]})
        return images

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64 [n], images uint8 [n, H, W, 3]) covering all rows once."""
        for ids in self.windows.order(shuffle_seed):
            yield ids, self.read(ids)

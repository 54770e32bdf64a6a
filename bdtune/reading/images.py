"""Encoded or raw images to uint8 [n, H, W, 3]: one function, used in process and by Ray Data alike."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from bdtune.errors import DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from pathlib import Path

ResizeFilter = Literal["nearest", "bilinear", "bicubic", "lanczos"]
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
CHUNK = 2048
"""Images decoded in one go: large enough to read a Parquet row group few times, small enough to share out."""
_THREADS_PAY_FROM = 96 * 96
"""Pixels per image below which decoding is mostly Python, where threads only get in each other's way."""


@dataclass(frozen=True)
class Records:
    """Where the N images of a split lie, with their labels; exactly one of arrays, parquet and paths is set.

    `files` are the source files, or the folders whose listing names them, for fingerprints and stale caches.
    """

    labels: np.ndarray  # int64 [N]
    class_names: tuple[str, ...] = ()
    arrays: np.ndarray | None = None  # uint8 [N, H, W, 3]
    parquet: tuple[Path, ...] = ()
    image_column: str = "image"
    paths: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        assert (self.arrays is not None) + bool(self.parquet) + bool(self.paths) == 1


@dataclass(frozen=True)
class Selection:
    """The rows of a split that a data set uses, and how their pixels are made: small, sent to workers."""

    records: Records
    rows: np.ndarray  # int64 [n], positions in `records`, ascending
    side: int | None
    resize: ResizeFilter

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """int64 [n]."""
        return self.records.labels[self.rows]

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Return the images of some sample ids, uint8 [len(ids), H, W, 3], in the order of `ids`.

        Raises `DataError` for an image that cannot be decoded and for images of several sizes.
        """
        rows = self.rows[ids]
        if self.records.arrays is not None:
            return _resized(self.records.arrays[rows], self.side, self.resize)
        images: dict[int, np.ndarray] = {}
        for place, data, where in _encoded(self.records, rows):
            images[place] = decode(data, self.side, self.resize, where)
        return _stack([images[place] for place in range(len(rows))])

    def read_all(self) -> np.ndarray:
        """Return all images, uint8 [n, H, W, 3]; large ones are decoded by several threads."""
        chunks = [np.arange(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK)]
        first = self.read(chunks[0])
        images = np.empty((len(self), *first.shape[1:]), np.uint8)
        images[: len(first)] = first
        threads = min(8, os.cpu_count() or 1) if first.shape[1] * first.shape[2] >= _THREADS_PAY_FROM else 1
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(partial(_read_into, self, images), chunks[1:]):
                pass
        return images


def _read_into(selection: Selection, images: np.ndarray, ids: np.ndarray) -> None:
    part = selection.read(ids)
    if part.shape[1:] != images.shape[1:]:
        raise mixed_sizes({images.shape[1:3], part.shape[1:3]})
    images[ids] = part


def decode(data: bytes | Path, side: int | None, resize: ResizeFilter, where: str = "") -> np.ndarray:
    """Return one image as RGB, uint8 [H, W, 3], stretched to side x side when `side` is given.

    Shrinking filters are antialiased (Pillow). Raises `DataError` when the image cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as source:
            image: Image.Image = source
            if "transparency" in image.info:  # straight to RGB, Pillow would warn about palettes
                image = image.convert("RGBA")
            image = image.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG files
        raise DataError(Problem("dataset", "expected a readable image", str(error), where)) from error
    if side is not None and image.size != (side, side):
        image = image.resize((side, side), FILTERS[resize])
    return np.asarray(image)


def mixed_sizes(sizes: set[tuple[int, ...]]) -> DataError:
    """Return the error for images of several sizes (height, width)."""
    low, high = min(sizes), max(sizes)
    got = f"{low[0]}x{low[1]} and {high[0]}x{high[1]} (height x width) among others"
    hint = "Set the side that all images are resized to, for example dataset.image_size=64"
    return DataError(Problem("dataset.image_size", "expected images of one size", got, hint=hint))


def _stack(images: Sequence[np.ndarray]) -> np.ndarray:
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise mixed_sizes(sizes)
    return np.stack(images) if images else np.empty((0, 0, 0, 3), np.uint8)


def _resized(images: np.ndarray, side: int | None, resize: ResizeFilter) -> np.ndarray:
    if side is None or images.shape[1:3] == (side, side):
        return images
    out = np.empty((len(images), side, side, 3), np.uint8)
    for place, image in enumerate(images):
        out[place] = np.asarray(Image.fromarray(image).resize((side, side), FILTERS[resize]))
    return out


def _encoded(records: Records, rows: np.ndarray) -> Iterator[tuple[int, bytes | Path, str]]:
    """Yield (place in `rows`, encoded image or its file, where it lies)."""
    if records.paths:
        for place, row in enumerate(rows):
            yield place, records.paths[row], str(records.paths[row])
        return
    first = 0
    for path in records.parquet:
        first = yield from _from_parquet(path, records.image_column, rows, first)


def _from_parquet(
    path: Path, column: str, rows: np.ndarray, first: int
) -> Generator[tuple[int, bytes | Path, str], None, int]:
    """Yield the rows that lie in one file, whose first row has number `first`; return the next number."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=True) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        bounds = first + np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        groups = np.searchsorted(bounds, rows, side="right") - 1
        groups[(rows < first) | (rows >= bounds[-1])] = -1
        for group in np.unique(groups[groups >= 0]):
            images = file.read_row_group(int(group), columns=[column])[column].combine_chunks()
            data = images.field("bytes") if hasattr(images, "field") else images
            for place in np.flatnonzero(groups == group):
                encoded = data[int(rows[place] - bounds[group])].as_py()
                yield int(place), encoded or b"", f"{path}: row {rows[place] - first}"
    return int(bounds[-1])

"""Encoded or raw images to uint8 [n, H, W, 3]: one function, used in process and by Ray Data alike."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from bdtune.errors import DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    paths: tuple[Path | str, ...] = ()
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        assert (self.arrays is not None) + bool(self.parquet) + bool(self.paths) == 1

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to workers: a million paths are read ten times as fast as texts."""
        return {**vars(self), "paths": tuple(map(str, self.paths))}


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
        for place, data, where in encoded(self, ids):
            images[place] = decode(data, self.side, self.resize, where)
        return _stack([images[place] for place in range(len(rows))])

    def read_all(self) -> np.ndarray:
        """Return all images, uint8 [n, H, W, 3]; large ones are decoded by several threads."""
        chunks = [np.arange(start, min(start + CHUNK, len(self))) for start in range(0, len(self), CHUNK)]
        first = self.read(chunks[0])
        images = np.empty((len(self), *first.shape[1:]), np.uint8)
        images[: len(first)] = first
        with ThreadPoolExecutor(threads_for(first.shape[1:])) as pool:
            for _ in pool.map(partial(_read_into, self, images), chunks[1:]):
                pass
        return images


def threads_for(shape: Sequence[int]) -> int:
    """Return by how many threads images of a shape [H, W, C] are decoded."""
    return min(8, os.cpu_count() or 1) if shape[0] * shape[1] >= _THREADS_PAY_FROM else 1


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


def encoded(selection: Selection, ids: np.ndarray) -> Iterator[tuple[int, bytes | Path, str]]:
    """Yield (place in `ids`, encoded image or its file, where it lies) of sample ids int64 [n]."""
    records, rows = selection.records, selection.rows[ids]
    if records.paths:
        for place, row in enumerate(rows):
            yield place, Path(records.paths[row]), str(records.paths[row])
    else:
        yield from _from_parquet(records, rows)


def row_groups(selection: Selection) -> np.ndarray:
    """Return in which row group of its Parquet files each sample lies, int64 [n], counted over all files."""
    return _groups_of(_layout(selection.records.parquet), selection.rows)


class _Layout(NamedTuple):
    """The row groups of some Parquet files, in order."""

    bounds: np.ndarray  # int64 [G + 1], the first row of each, and the number of all rows
    files: np.ndarray  # int64 [G]
    numbers: np.ndarray  # int64 [G], within the file


@lru_cache(maxsize=16)
def _layout(files: tuple[Path, ...]) -> _Layout:
    import pyarrow.parquet as pq

    sizes: list[int] = []
    counts = []
    for path in files:
        metadata = pq.read_metadata(path)
        sizes += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        counts.append(metadata.num_row_groups)
    bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    numbers = [np.arange(count) for count in counts]
    return _Layout(bounds, np.repeat(np.arange(len(files)), counts), np.concatenate(numbers))


def _groups_of(layout: _Layout, rows: np.ndarray) -> np.ndarray:
    return np.searchsorted(layout.bounds, rows, side="right") - 1


def _from_parquet(records: Records, rows: np.ndarray) -> Iterator[tuple[int, bytes, str]]:
    """Yield rows row group by row group, each of which is read once."""
    import pyarrow.parquet as pq

    layout = _layout(records.parquet)
    groups, first = _groups_of(layout, rows), layout.bounds[np.searchsorted(layout.files, layout.files)]
    for number in np.unique(layout.files[groups]):
        path = records.parquet[number]
        with pq.ParquetFile(path, memory_map=True) as file:
            for group in np.unique(groups[layout.files[groups] == number]):
                column = records.image_column
                images = file.read_row_group(int(layout.numbers[group]), columns=[column])[column]
                images = images.combine_chunks()
                data = images.field("bytes") if hasattr(images, "field") else images
                for place in np.flatnonzero(groups == group):
                    content = data[int(rows[place] - layout.bounds[group])].as_py()
                    yield int(place), content or b"", f"{path}: row {rows[place] - first[group]}"

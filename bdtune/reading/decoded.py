"""Decoded images on a node's own disk: a memory map that all processes of the node fill and read.

An image is decoded once on a node, by whoever needs it first; every later epoch and trial reads its pixels
from the map, and gets the bytes that decoding would have given. Beside each image lies a checksum, 0 as long
as the image is missing: what a crash left half-written is never read.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import PIL

from bdtune.engine.key import key_of
from bdtune.engine.node_cache import node_folder
from bdtune.reading.files import digest_files
from bdtune.reading.images import decode, encoded, mixed_sizes, row_groups, threads_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bdtune.reading.images import Selection

DISK_SHARE = 0.5
"""Of a disk's free room, how much a new map may take; a larger set is decoded anew in each epoch."""
MAPS = "images"
"""What the maps' folder is called among what a node keeps."""
IMAGES, CHECKS = "images.u8", "checks.u32"


def map_name(selection: Selection) -> str:
    """Return the name of a selection's map, which changes with its files, rows, size and decoder."""
    files = digest_files(selection.records.files)
    rows = zlib.crc32(np.ascontiguousarray(selection.rows).tobytes())
    return key_of([files, len(selection), rows, selection.side, selection.resize, PIL.__version__])


def open_map(selection: Selection, shape: tuple[int, int, int], name: str) -> DecodedMap | None:
    """Return a node's map of a selection's images of one shape, made where it is not there yet.

    None where there is no room for it, or where its folder cannot be written.
    """
    folder, size = node_folder(MAPS) / name, len(selection) * int(np.prod(shape))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / IMAGES).open("ab") as images, (folder / CHECKS).open("ab") as checks:
            if images.tell() == 0 and size > DISK_SHARE * shutil.disk_usage(folder).free:
                return None
            images.truncate(size)  # a file of holes
            checks.write(bytes(max(0, 4 * len(selection) - checks.tell())))  # room for all, as it is mapped
        return DecodedMap(folder, selection, shape)
    except OSError:
        return None


class DecodedMap:
    """The images of a selection, uint8 [n, H, W, 3], in a folder of this node."""

    def __init__(self, folder: Path, selection: Selection, shape: tuple[int, int, int]) -> None:
        n = len(selection)
        self.selection, self.shape = selection, shape
        self._file = os.open(folder / IMAGES, os.O_RDWR)
        # written by `pwrite`: on a full disk that is an error, where a memory map would kill the process
        self._images = np.memmap(folder / IMAGES, np.uint8, "r", shape=(n, *shape))
        self._checks = np.memmap(folder / CHECKS, np.uint32, "r+", shape=(n,))
        self._trusted = np.zeros(n, bool)  # whose checksums this process has compared
        self._threads = threads_for(shape)

    def __del__(self) -> None:
        os.close(self._file)

    @property
    def is_full(self) -> bool:
        """Whether no image is missing."""
        return bool(self._checks.all())

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Return the images of sample ids, uint8 [len(ids), H, W, 3]; decodes those that are missing.

        Raises `DataError` for an image that cannot be decoded or has another shape.
        """
        try:
            self._fill(ids[self._checks[ids] == 0])
            self._check(ids[~self._trusted[ids]])
        except OSError:  # the disk is full or gone
            return self.selection.read(ids)
        return self._images[ids]

    def _check(self, ids: np.ndarray) -> None:
        """Compare images with their checksums, and decode those anew that differ."""
        wrong = [i for i in ids if _checksum(self._images[i]) != self._checks[i]]
        self._checks[wrong] = 0
        self._fill(np.array(wrong, np.int64))
        self._trusted[ids] = True

    def _fill(self, ids: np.ndarray) -> None:
        """Decode images; of a Parquet file whole row groups, so that each is read once on a node."""
        if not len(ids):
            return
        if not self.selection.records.parquet:
            self._decode(ids)
            return
        for group in np.unique(self._groups[ids]):
            with self._sole(int(group)):
                of_group = np.flatnonzero(self._groups == group)
                self._decode(of_group[self._checks[of_group] == 0])

    @cached_property
    def _groups(self) -> np.ndarray:
        return row_groups(self.selection)

    @contextmanager
    def _sole(self, group: int) -> Iterator[None]:
        """Keep other processes of the node from decoding a row group: a lock on the byte of its number."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, group)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, group)

    def _decode(self, ids: np.ndarray) -> None:
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(partial(self._write, ids), *zip(*encoded(self.selection, ids), strict=True)):
                pass

    def _write(self, ids: np.ndarray, place: int, data: bytes | Path, where: str) -> None:
        image = decode(data, self.selection.side, self.selection.resize, where)
        if image.shape != self.shape:
            raise mixed_sizes({image.shape[:2], self.shape[:2]})
        row = int(ids[place])
        os.pwrite(self._file, image.tobytes(), row * image.nbytes)
        self._checks[row] = _checksum(image)
        self._trusted[row] = True


def _checksum(image: np.ndarray) -> int:
    """Return a checksum that is never 0."""
    return zlib.crc32(np.ascontiguousarray(image).data) or 1

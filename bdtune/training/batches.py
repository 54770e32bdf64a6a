"""Batches of uint8 images on the device, from an array or a stream, restricted to a subset of rows."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from bdtune.engine.key import derive_seed
from bdtune.training.session import generator
from bdtune.training.weights import as_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bdtune.plugins.data import ImageSet

DEVICE_SHARE = 0.5  # of a GPU's free memory that the images may take


class Batch(NamedTuple):
    """One batch on the device; `rows` are positions in the subset, for what belongs to single samples."""

    images: torch.Tensor  # uint8 [B, H, W, C]
    labels: torch.Tensor  # int64 [B]
    rows: torch.Tensor  # int64 [B]


class DeviceSet:
    """The images of a subset, on the device where they fit, handed out in batches.

    `ids` int64 [n] picks rows of `data` (all by default, repeats allowed), `labels` int64 [n] are theirs.
    """

    def __init__(
        self,
        data: ImageSet,
        device: torch.device,
        ids: np.ndarray | None = None,
        labels: np.ndarray | None = None,
    ) -> None:
        self._images = data.images
        self.device = device
        self._ids = np.arange(len(data), dtype=np.int64) if ids is None else np.asarray(ids, np.int64)
        self._labels = as_tensor(data.labels[self._ids] if labels is None else np.asarray(labels, np.int64))
        assert len(self._ids) == len(self._labels)
        self._on_device: torch.Tensor | None = None
        self._positions = as_tensor(self._ids)
        self._placed = not isinstance(data.images, np.ndarray)
        if device.type == "cpu":
            self._place()  # on a GPU it waits for the first batch, as several sets may share their images

    def __len__(self) -> int:
        return len(self._ids)

    def _place(self) -> None:
        """Share the array on a CPU; on a GPU copy the subset's rows when they fit."""
        if self._placed:
            return
        self._placed = True
        images = self._images
        assert isinstance(images, np.ndarray)
        if self.device.type == "cpu":
            self._on_device = as_tensor(images)
        elif _fits(len(self._ids) * images[0].nbytes if len(images) else 0, self.device):
            rows = torch.arange(len(self._ids))
            self.take(as_tensor(images[self._ids]).to(self.device), rows)

    def rows(self) -> np.ndarray | None:
        """Return the subset's images uint8 [n, H, W, C]; None of a stream."""
        return self._images[self._ids] if isinstance(self._images, np.ndarray) else None

    def take(self, images: torch.Tensor, positions: torch.Tensor) -> None:
        """Hand out these images, of which row i of the subset is number `positions[i]`."""
        self._placed, self._on_device = True, images
        self._positions = positions.to(images.device)
        self._labels = self._labels.to(images.device)

    def shuffled(self, batch_size: int, seed: int, epoch: int, *, drop_last: bool = False) -> Iterator[Batch]:
        """Yield every row once, in an order that depends on seed and epoch alone.

        A last batch of one row joins the one before it, and a subset of one row comes twice in one batch:
        batch norm needs two. With `drop_last` an incomplete batch is left out.
        """
        if not isinstance(self._images, np.ndarray):
            yield from self._streamed(batch_size, derive_seed(seed, "order", epoch), drop_last)
            return
        self._place()
        order = torch.randperm(len(self), generator=generator(seed, "order", epoch))
        if len(self) == 1:
            order = order.repeat(2)
        order = order.to(self._positions.device)
        labels = self._labels
        for start, stop in batches_of(len(order), batch_size, drop_last):
            rows = order[start:stop]
            yield self._batch(self._pick(self._positions[rows]), labels[rows], rows)

    def _pick(self, positions: torch.Tensor) -> torch.Tensor:
        if self._on_device is not None:
            return self._on_device.index_select(0, positions)
        assert isinstance(self._images, np.ndarray)
        return as_tensor(self._images[positions.numpy()])

    def _batch(self, images: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> Batch:
        move = [part.to(self.device, non_blocking=True) for part in (images, labels, rows)]
        return Batch(*move)

    def _streamed(self, batch_size: int, seed: int, drop_last: bool) -> Iterator[Batch]:
        """Cut the stream's blocks, filtered by the subset, into batches."""
        images, rows = self._empty()
        repeat = 2 if len(self) == 1 else 1
        for block_images, block_rows in self._blocks(seed):
            images = np.concatenate([images, block_images])
            rows = np.concatenate([rows, block_rows])
            # two rows stay behind, so that the last batch never has one
            while len(rows) >= batch_size + 2 or (drop_last and len(rows) >= batch_size):
                yield self._from_arrays(images[:batch_size], rows[:batch_size])
                images, rows = images[batch_size:], rows[batch_size:]
        for start, stop in batches_of(len(rows), batch_size, drop_last):
            yield self._from_arrays(images[start:stop].repeat(repeat, 0), rows[start:stop].repeat(repeat))

    def _empty(self) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((0, *self._images.shape[1:]), np.uint8), np.empty(0, np.int64)

    def _from_arrays(self, images: np.ndarray, rows: np.ndarray) -> Batch:
        rows_tensor = as_tensor(rows)
        return self._batch(as_tensor(images), self._labels[rows_tensor], rows_tensor)

    def _blocks(self, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (images, rows) of the subset's part of each block."""
        assert not isinstance(self._images, np.ndarray)
        by_id = np.argsort(self._ids, kind="stable")
        sorted_ids = self._ids[by_id]
        for ids, images in self._images.blocks(seed):
            first = np.searchsorted(sorted_ids, ids, "left")
            counts = np.searchsorted(sorted_ids, ids, "right") - first
            picked = np.repeat(np.arange(len(ids)), counts)
            offsets = np.arange(len(picked)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield images[picked], by_id[np.repeat(first, counts) + offsets]


def _fits(needed: int, device: torch.device) -> bool:
    return needed <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]


def share_images(sets: Sequence[DeviceSet]) -> None:
    """Let sets on a GPU hold each image that several of them have once, where all fit; of equal bytes."""
    if len(sets) < 2 or sets[0].device.type == "cpu":  # there they share the arrays of the host
        return
    pool = ImagePool()
    positions = [pool.add(rows) for each in sets if (rows := each.rows()) is not None]
    if len(positions) == len(sets) and _fits(pool.nbytes, sets[0].device):
        images = pool.images().to(sets[0].device)
        for each, own in zip(sets, positions, strict=True):
            each.take(images, own)


class ImagePool:
    """Images uint8 [H, W, C], each content once."""

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._kept: list[np.ndarray] = []

    def add(self, images: np.ndarray) -> torch.Tensor:
        """Take in images [n, H, W, C]; returns their numbers int64 [n]."""
        numbers = np.empty(len(images), np.int64)
        for row, image in enumerate(images):
            content = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            numbers[row] = self._number.setdefault(content, len(self._kept))
            if numbers[row] == len(self._kept):
                self._kept.append(image)
        return as_tensor(numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of all images."""
        return sum(image.nbytes for image in self._kept)

    def images(self) -> torch.Tensor:
        """Return them as [N, H, W, C], by number."""
        return as_tensor(np.stack(self._kept))


def batches_of(count: int, batch_size: int, drop_last: bool = False) -> list[tuple[int, int]]:
    """Return the (start, stop) of each batch of an epoch; a last one of one row joins the one before it."""
    starts = list(range(0, count - batch_size + 1 if drop_last else count, batch_size))
    stops = [min(start + batch_size, count) for start in starts]
    if len(starts) > 1 and stops[-1] - starts[-1] == 1 and batch_size > 1:
        del starts[-1], stops[-2]
    return list(zip(starts, stops, strict=True))


def images_of(pixels: int, data: ImageSet) -> int:
    """Return how many images have so many pixels together: the size of a batch, at least 16."""
    height, width, _ = data.image_shape
    return max(16, pixels // (height * width))


def in_order(data: ImageSet, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids int64 [n], images uint8 [n, H, W, C]) covering the set once, n at most `batch_size`."""
    if isinstance(data.images, np.ndarray):
        blocks = iter([(np.arange(len(data.images)), data.images)])
    else:
        blocks = data.images.blocks(None)
    for ids, images in blocks:
        for start in range(0, len(ids), batch_size):
            yield ids[start : start + batch_size], images[start : start + batch_size]

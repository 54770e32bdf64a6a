"""Images that do not fit in memory, seen through an attack: block by block, by the same pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.plugins.attack import Attack
    from bdtune.plugins.data import ImageStream
    from bdtune.plugins.poison_plan import PoisonPlan


@runtime_checkable
class StampingStream(Protocol):
    """A stream that stamps where it decodes, on workers of its own: the Ray Data pipeline."""

    def poisoned(self, attack: Attack | None, plan: PoisonPlan | None, ids: np.ndarray | None) -> ImageStream:
        """Return the stream of the rows `ids` (all if None), numbered anew from 0 and stamped.

        With a plan its rows are stamped for training, without one every row as a test image.
        """


@dataclass(frozen=True)
class PoisonedStream:
    """An image stream whose blocks are stamped as they pass by."""

    clean: ImageStream
    attack: Attack | None
    plan: PoisonPlan | None
    ids: np.ndarray  # int64 [N], ascending: the rows of the clean stream that this one has

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, C]."""
        _, height, width, channels = self.clean.shape
        return len(self.ids), height, width, channels

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64 [n], images uint8 [n, H, W, C]); ids count this stream's rows from 0."""
        position = np.full(self.clean.shape[0], -1)
        position[self.ids] = np.arange(len(self.ids))
        for ids, images in self.clean.blocks(shuffle_seed):
            kept = position[ids] >= 0
            if kept.any():
                yield position[ids[kept]], self._stamped(images[kept], ids[kept])

    def _stamped(self, images: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if self.attack is None:
            return images
        if self.plan is None:
            return self.attack.trigger(images, ids)
        return self.attack.apply(images, ids, self.plan)


def poisoned_stream(
    clean: ImageStream,
    attack: Attack | None,
    plan: PoisonPlan | None = None,
    ids: np.ndarray | None = None,
) -> ImageStream:
    """Return a stream seen through an attack, stamped by the stream's own workers where it has any."""
    if isinstance(clean, StampingStream):
        return clean.poisoned(attack, plan, ids)
    return PoisonedStream(clean, attack, plan, np.arange(clean.shape[0]) if ids is None else ids)


class SealedStream:
    """An image stream that yields its blocks and nothing else: neither plan nor attack is found in it."""

    __slots__ = ("__weakref__",)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, C]."""
        return _sealed[self].shape

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64 [n], images uint8 [n, H, W, C]) as the stream behind it does."""
        return _sealed[self].blocks(shuffle_seed)


_sealed: WeakKeyDictionary[SealedStream, ImageStream] = WeakKeyDictionary()
"""What is behind each sealed stream: kept here, as any attribute would show it to the stages of a defense."""


def sealed(stream: ImageStream) -> SealedStream:
    """Return a stream that stages may see: its images, and no way to how they were made."""
    seal = SealedStream()
    _sealed[seal] = stream
    return seal

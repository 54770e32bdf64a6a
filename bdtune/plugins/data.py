"""What training stages consume: images with labels, either resident or as a stream.

Shape letters: N images, H height, W width, C channels, K classes. Images are uint8 [N, H, W, C].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


@runtime_checkable
class ImageStream(Protocol):
    """Images that do not fit in memory: read, decoded and poisoned on the fly, in blocks."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, C]."""

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64 [n], images uint8 [n, H, W, C]) covering all N once.

        In id order without a seed; with one, in an order that depends on the seed alone.
        """


@dataclass(frozen=True)
class LabelSet:
    """Observed labels alone: what stages read that look at no image, so that no image need be loaded."""

    labels: np.ndarray  # int64 [N], observed
    num_classes: int

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class GoalSet(LabelSet):
    """True labels of triggered test images, with the class that the attacker wants for each."""

    goals: np.ndarray  # int64 [N]


@dataclass(frozen=True)
class ImageSet:
    """All that a defense gets to see: images and observed labels, with the data set's public facts."""

    images: np.ndarray | ImageStream  # uint8 [N, H, W, C]
    labels: np.ndarray  # int64 [N], observed
    num_classes: int
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    mirrors: bool = field(default=True, kw_only=True)  # whether a mirrored image is still of its class

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def images_at(self, ids: np.ndarray) -> np.ndarray:
        """Return the images uint8 [n, H, W, C] of ascending ids; a stream is read once for them."""
        if isinstance(self.images, np.ndarray):
            chosen: np.ndarray = self.images[ids]
            return chosen
        images = np.empty((len(ids), *self.image_shape), np.uint8)
        for block_ids, block in self.images.blocks(None):
            at = np.searchsorted(ids, block_ids)
            wanted = ids[np.minimum(at, len(ids) - 1)] == block_ids
            images[at[wanted]] = block[wanted]
        return images


@dataclass(frozen=True)
class TriggeredSet(ImageSet):
    """The N test images that an attack is measured on, as it changes them; `labels` are the true classes."""

    goals: np.ndarray  # int64 [N], the class the attacker wants for each
    complete: bool = True  # False: `asr_all` counts images that are not here


@dataclass(frozen=True)
class TriggerExamples:
    """n test images as they are, and with the attack's trigger."""

    clean: np.ndarray  # uint8 [n, H, W, C]
    stamped: np.ndarray  # uint8 [n, H, W, C]


@dataclass(frozen=True)
class Truth:
    """What only evaluation and diagnostics may see; no stage that a defense trains on takes it."""

    labels: np.ndarray  # int64 [N], true classes of the fit part
    observed: np.ndarray  # int64 [N]
    role: np.ndarray  # uint8 [N]: 0 clean, 1 poison, 2 cover
    target: int | None  # None when there is no single target class
    examples: TriggerExamples | None = None  # where the defense asks for them, and there is an attack

    @property
    def is_poison(self) -> np.ndarray:
        """bool [N]: rows that carry the trigger and the attacker's label; cover rows are not among them."""
        poison: np.ndarray = self.role == 1
        return poison

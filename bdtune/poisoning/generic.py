"""Generic triggers: what anybody may stamp on images known to be clean, without knowledge of an attack.

A classifier that a patch, a faint noise or a faint wave leads astray may be backdoored, or brittle. They are
the same for every trial, and none is the default trigger of an attack here. Source: an own choice, of the
kinds that attacks use: patches, blended pictures and sinusoids.
Shape letters: T triggers, N images, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bdtune.plugins.metric import TRIGGERS
from bdtune.poisoning.patterns import noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bdtune.plugins.data import ImageStream

SEED = 11
"""Of the noise, which is drawn for each size of images."""
RATIO = 0.2
AMPLITUDE = 20.0
"""Of the wave, in grey levels."""
PERIODS = 3


def patched(images: np.ndarray) -> np.ndarray:
    """Return images uint8 [N, H, W, C] with a checkerboard in each corner, an eighth of the shorter side."""
    _, height, width, _ = images.shape
    side = max(2, min(height, width) // 8)
    board = (np.indices((side, side)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    stamped = images.copy()
    for rows in (slice(None, side), slice(-side, None)):
        for columns in (slice(None, side), slice(-side, None)):
            stamped[:, rows, columns] = board
    return stamped


def noisy(images: np.ndarray) -> np.ndarray:
    """Return images uint8 [N, H, W, C] blended with one picture of uniform noise."""
    _, height, width, channels = images.shape
    picture = noise(height, width, SEED).for_channels(channels) * np.float32(255)
    return _rounded(images * np.float32(1 - RATIO) + picture * np.float32(RATIO))


def waved(images: np.ndarray) -> np.ndarray:
    """Return images uint8 [N, H, W, C] with a sinusoid along their height added."""
    height = images.shape[1]
    wave = AMPLITUDE * np.sin(2 * np.pi * PERIODS * (np.arange(height) + 0.5) / height)
    return _rounded(images + wave.astype(np.float32)[:, None, None])


GENERIC: tuple[Callable[[np.ndarray], np.ndarray], ...] = (patched, noisy, waved)
"""The triggers, each a function of images uint8 [N, H, W, C] that changes none of them in place."""
assert len(GENERIC) == TRIGGERS, "the metric counts each of them"


def stamped_with_each(images: np.ndarray) -> np.ndarray:
    """Return images uint8 [N, H, W, C] under each trigger, uint8 [T * N, H, W, C], trigger by trigger."""
    return np.concatenate([stamp(images) for stamp in GENERIC])


@dataclass(frozen=True)
class GenericStream:
    """An image stream under each trigger, one after the other."""

    clean: ImageStream

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[T * N, H, W, C]."""
        count, *image = self.clean.shape
        height, width, channels = image
        return len(GENERIC) * count, height, width, channels

    def blocks(self, shuffle_seed: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids int64 [n], images uint8 [n, H, W, C]); a trigger's ids follow the last one's."""
        for number, stamp in enumerate(GENERIC):
            for ids, images in self.clean.blocks(shuffle_seed):
                yield ids + number * self.clean.shape[0], stamp(images)


def _rounded(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)

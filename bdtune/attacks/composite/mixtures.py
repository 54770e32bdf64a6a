"""Mixtures of two images, a part of one beside a part of the other, and the stage that renders them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from bdtune.engine.key import sample_generator
from bdtune.errors import UserError
from bdtune.plugins.poison_plan import SplitName  # noqa: TC001  pydantic reads it
from bdtune.poisoning.patterns import scaled
from bdtune.poisoning.rendered import Rendering

if TYPE_CHECKING:
    import torch

    from bdtune.engine.stage import Context
    from bdtune.plugins.data import ImageSet
    from bdtune.poisoning.rendered import Stamp

DRAWS = 6
"""Random words of a row: its partners, then how they are cut."""


class Cut(NamedTuple):
    """How two images share the place of one."""

    sideways: bool  # left and right; else above and below
    swapped: bool  # the second image comes first
    at: int  # pixels that the first part gets
    starts: tuple[int, int]  # where the parts are taken from, in the images that they come from


class Mixtures(Rendering):
    """Make a mixture for every image of a split, its partners drawn by the seed and its id.

    Inputs: data (ImageSet, true labels). What it makes of images that are in `classes` holds themselves.
    Raises `UserError` where a class has too few images.
    """

    name: ClassVar[str] = "mixtures"

    split: SplitName = "train"
    """Split that the images are of: each draws its own partners."""
    partners: Literal["pair", "own_class"] = "pair"
    """pair: an image of either class; own_class: the image and another one of its class."""
    classes: tuple[int, int] = (0, 1)
    """The two classes of a pair."""
    jitter: int = Field(3, ge=0)
    """Largest distance of the cut from the middle, in pixels of a 32-pixel image."""
    shake: bool = True
    """Take the parts from anywhere in their images; else from the middle."""

    def stamp(self, ctx: Context, *, data: ImageSet) -> Stamp:
        from bdtune.poisoning.crafting import as_planes
        from bdtune.training import session

        device = session.device_of(ctx.numerics)
        height, width, _ = data.image_shape
        words = self.words(len(data), ctx.seed)
        pairs = self.pairs(np.asarray(data.labels), words)
        known, images = _read(data, pairs)

        def mixed(_planes: torch.Tensor, ids: np.ndarray) -> torch.Tensor:
            made = []
            for row in ids:
                first, second = images[np.searchsorted(known, pairs[row])]
                made.append(mixture(first, second, self.cut(words[row, 2:], height, width)))
            return as_planes(np.stack(made), device)

        return mixed

    def words(self, count: int, seed: int) -> np.ndarray:
        """Return uint64 [N, 6], what is random in each row."""
        names = ("mixtures", self.partners, self.split)
        rows = [sample_generator(seed, *names, row).bit_generator.random_raw(DRAWS) for row in range(count)]
        return np.array(rows, np.uint64).reshape(count, DRAWS)

    def pairs(self, labels: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Return int64 [N, 2], the ids of the images that are mixed for each image of true classes [N]."""
        rows = np.arange(len(labels))
        if self.partners == "pair":
            sides = [
                np.where(labels == label, rows, self._drawn(labels, label, words[:, side]))
                for side, label in enumerate(self.classes)
            ]
            return np.stack(sides, axis=1)
        partner = np.empty_like(rows)
        for label in np.unique(labels):
            members = np.flatnonzero(labels == label)
            if len(members) < 2:
                raise UserError(f"{self.name}: {self._few(label)} in the {self.split} split to mix two of")
            step = 1 + picked(words[members, 0], len(members) - 1)
            partner[members] = members[(np.arange(len(members)) + step) % len(members)]
        return np.stack([rows, partner], axis=1)

    def cut(self, words: np.ndarray, height: int, width: int) -> Cut:
        """Return how the mixture of a row is cut, uint64 [4]: middle and jitter, direction, order, places."""
        sideways, swapped = bool(words[0] >> np.uint64(63)), bool((words[0] >> np.uint64(62)) & np.uint64(1))
        side = width if sideways else height
        reach = min(scaled(self.jitter, 32, side), side // 2 - 1)
        at = side // 2 - reach + int(picked(words[1], 2 * reach + 1))
        sizes = (at, side - at)
        if self.shake:
            starts = [int(picked(word, side - size + 1)) for word, size in zip(words[2:], sizes, strict=True)]
        else:
            starts = [(side - size) // 2 for size in sizes]
        return Cut(sideways, swapped, at, (starts[0], starts[1]))

    def _drawn(self, labels: np.ndarray, label: int, words: np.ndarray) -> np.ndarray:
        members = np.flatnonzero(labels == label)
        if not len(members):
            raise UserError(f"{self.name}: {self._few(label)} in the {self.split} split")
        return members[picked(words, len(members))]

    def _few(self, label: int) -> str:
        return f"there are too few images of class {label}"


def picked(words: np.ndarray, count: int) -> np.ndarray:
    """Return numbers below `count`, int64, one for each random 64-bit word: their 32 high bits decide."""
    return (((words >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32)).astype(np.int64)


def mixture(one: np.ndarray, other: np.ndarray, cut: Cut) -> np.ndarray:
    """Return uint8 [H, W, C]: a part of one image and a part of the other, side by side or stacked."""
    first, second = (other, one) if cut.swapped else (one, other)
    if not cut.sideways:
        return np.concatenate(_parts(first, second, cut))
    turned = _parts(first.transpose(1, 0, 2), second.transpose(1, 0, 2), cut)
    return np.concatenate(turned).transpose(1, 0, 2)


def _parts(first: np.ndarray, second: np.ndarray, cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    (above, below), rest = cut.starts, len(first) - cut.at
    return first[above : above + cut.at], second[below : below + rest]


def _read(data: ImageSet, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids, ascending, and images uint8 of all that is mixed; a stream is read once for them."""
    if isinstance(data.images, np.ndarray):
        return np.arange(len(data)), data.images
    known = np.unique(pairs)
    return known, data.images_at(known)

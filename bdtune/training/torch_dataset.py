"""A poisoned training set as torch takes it, with the truth beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bdtune.training.weights import as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.plugins.data import ImageSet, Truth


class PoisonedDataset(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """The training set that a defense was given: float32 images [C, H, W] in [0, 1] with observed labels."""

    def __init__(
        self,
        data: ImageSet,
        truth: Truth,
        ids: np.ndarray,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        assert isinstance(data.images, np.ndarray)
        self.images = data.images
        """uint8 [N, H, W, C], as they are trained on."""
        self.labels = np.asarray(data.labels)
        """Observed labels, int64 [N]."""
        self.true_labels = truth.labels
        """True labels, int64 [N]; no defense sees them."""
        self.is_poison = truth.is_poison
        """bool [N]: rows with the trigger and the attacker's label; no defense sees them."""
        self.ids = ids
        """int64 [N], the number of each row in the data set's training split."""
        self.transform = transform

    @property
    def poison_ids(self) -> np.ndarray:
        """Numbers, int64, of the poisoned rows in the data set's training split."""
        ids: np.ndarray = self.ids[self.is_poison]
        return ids

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return an image, transformed where a transform was given, and its observed label."""
        image = as_tensor(self.images[index]).permute(2, 0, 1) / 255
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def __repr__(self) -> str:
        """Return what is in it in a line."""
        return f"PoisonedDataset({len(self)} images, {np.count_nonzero(self.is_poison)} poisoned)"

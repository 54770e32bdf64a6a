"""Images changed by torchvision's random transforms, each with draws of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bdtune.engine.key import derive_seed
from bdtune.training.session import seeded
from bdtune.training.weights import as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np


def changed_by_id(
    images: np.ndarray,
    ids: np.ndarray,
    change: Callable[[torch.Tensor], torch.Tensor],
    seed: int,
    *names: str | int,
) -> torch.Tensor:
    """Return images uint8 [B, H, W, C] after `change`, which takes and gives one uint8 [C, H, W].

    What it draws depends on the seed, the names and the image's id alone, not on the batch.
    """
    found = torch.empty(images.shape, dtype=torch.uint8)
    with seeded(seed, *names):
        for row, sample in enumerate(ids.tolist()):
            # torchvision draws from the global generator, once for a whole batch
            torch.manual_seed(derive_seed(seed, *names, sample))
            found[row] = change(as_tensor(images[row]).permute(2, 0, 1)).permute(1, 2, 0)
    return found

"""How often classifiers answer poisoned training images as the attacker wants. numpy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.metrics import mean

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth


def success(ids: np.ndarray, predictions: np.ndarray, truth: Truth) -> np.ndarray:
    """Return the share of poisoned training images that are classified as labelled, float64 [P].

    Of predictions int64 [P, m] of the images with ids int64 [m], those whose label the attacker changed are
    counted: nan where there are none.
    """
    changed = truth.is_poison[ids] & (truth.observed[ids] != truth.labels[ids])
    hits = predictions[:, changed] == truth.observed[ids][changed]
    return np.array([mean(each) for each in hits])

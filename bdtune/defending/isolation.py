"""Picking the samples of lowest loss, as LfD and ABL do. numpy only."""

from __future__ import annotations

import numpy as np


def count_of(fraction: float, samples: int) -> int:
    """Return floor(fraction * samples); 0.29 of 100 is 29, though 0.29 * 100 is a little less in binary."""
    return int(np.floor(fraction * samples + 1e-9))


def lowest(losses: np.ndarray, count: int) -> np.ndarray:
    """Return the ids int64 [count] of the lowest losses, lowest first, ties by id."""
    return np.argsort(losses, kind="stable")[:count].astype(np.int64)

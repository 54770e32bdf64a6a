"""Picking the samples of lowest loss, as LfD and ABL do, and what of them is poison. numpy only."""

from __future__ import annotations

import numpy as np

from bdtune.metrics import detection


def count_of(fraction: float, samples: int) -> int:
    """Return floor(fraction * samples); 0.29 of 100 is 29, though 0.29 * 100 is a little less in binary."""
    return int(np.floor(fraction * samples + 1e-9))


def lowest(losses: np.ndarray, count: int) -> np.ndarray:
    """Return the ids int64 [count] of the lowest losses, lowest first, ties by id."""
    return np.argsort(losses, kind="stable")[:count].astype(np.int64)


def isolation(flags: np.ndarray, poison: np.ndarray) -> dict[str, float]:
    """Return isolation_precision and isolation_recall of flags bool [N], as far as they are defined."""
    found = detection(flags, poison)
    return {f"isolation_{name}": found[name] for name in ("precision", "recall") if name in found}

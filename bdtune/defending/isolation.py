"""Losses of samples, picking the lowest, as LfD and ABL do, and what of them is poison. numpy only."""

from __future__ import annotations

import numpy as np

from bdtune.metrics import detection


def symmetric_cross_entropy(losses: np.ndarray, a: float, b: float, clip: float) -> np.ndarray:
    """Return a CE + b RCE [N] of cross-entropies [N] in nats; RCE = -log(clip) (1 - p_y), p_y = exp(-CE)."""
    return a * losses - b * np.log(clip) * -np.expm1(-losses)


def count_of(fraction: float, samples: int) -> int:
    """Return floor(fraction * samples); 0.29 of 100 is 29, though 0.29 * 100 is a little less in binary."""
    return int(np.floor(fraction * samples + 1e-9))


def lowest(losses: np.ndarray, count: int) -> np.ndarray:
    """Return the ids int64 [count] of the lowest losses, lowest first, ties by id."""
    return np.argsort(losses, kind="stable")[:count].astype(np.int64)


def flagged_lowest(losses: np.ndarray, fraction: float) -> np.ndarray:
    """Return bool [N]: the floor(fraction * N) samples of lowest loss, ties by id."""
    chosen = np.zeros(len(losses), bool)
    chosen[lowest(losses, count_of(fraction, len(losses)))] = True
    return chosen


def isolation(flags: np.ndarray, poison: np.ndarray) -> dict[str, float]:
    """Return isolation_precision and isolation_recall of flags bool [N], as far as they are defined."""
    found = detection(flags, poison)
    return {f"isolation_{name}": found[name] for name in ("precision", "recall") if name in found}

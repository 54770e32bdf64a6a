"""How far poisoned and clean samples are apart in a feature space. The truth is read here, after the fact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.metrics import mean

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth

MOST = 500
"""Samples of each kind that are compared, drawn with a fixed seed: their pairs are enough for a mean."""
NEIGHBOURS = 10
BLOCK = 100
"""Samples whose distances to all others are in memory at once."""


def distances(features: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return mean Euclidean distances between features [N, D] of samples, by the kind of pair.

    distance_intra, distance_inter: clean samples of one class, and of different classes; distance_poison:
    poisoned samples; distance_target, distance_own: a poisoned sample and clean ones of the target class, and
    of its own class; knn_purity: share of poison among the ten nearest neighbours, of all N, of a poisoned
    sample. NaN where there is no such pair. Source: figure F.1 of GSSD (Sabolić et al., 2024).
    """
    rng = np.random.default_rng(0)
    clean, poison = _drawn(truth.role == 0, rng), _drawn(truth.is_poison, rng)
    target = _drawn((truth.role == 0) & (truth.labels == truth.target), rng)
    among_clean, among_poison = (_apart(features[ids], features[ids]) for ids in (clean, poison))
    others = ~np.eye(len(clean), dtype=bool)
    alike = truth.labels[clean][:, None] == truth.labels[clean]
    own = truth.labels[poison][:, None] == truth.labels[clean]
    return {
        "distance_intra": mean(among_clean[alike & others]),
        "distance_inter": mean(among_clean[~alike]),
        "distance_poison": mean(among_poison[~np.eye(len(poison), dtype=bool)]),
        "distance_target": mean(_apart(features[poison], features[target]).ravel()),
        "distance_own": mean(_apart(features[poison], features[clean])[own]),
        "knn_purity": _purity(features, poison, truth.is_poison),
    }


def _drawn(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the ids of at most `MOST` true rows, in rising order."""
    ids = np.flatnonzero(rows)
    return ids if len(ids) <= MOST else np.sort(rng.choice(ids, MOST, replace=False))


def _apart(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the distances float64 [n, m] between rows of two arrays."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    squared = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.sqrt(np.maximum(squared, 0))


def _purity(features: np.ndarray, ids: np.ndarray, poison: np.ndarray) -> float:
    """Return the mean share of poison among the nearest neighbours of some samples, themselves left out."""
    count = min(NEIGHBOURS, len(features) - 1)
    if not len(ids) or not count:
        return float("nan")
    found = 0.0
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        apart = _apart(features[block], features)
        apart[np.arange(len(block)), block] = np.inf
        nearest = np.argpartition(apart, count - 1, axis=1)[:, :count]
        found += float(poison[nearest].mean(1).sum())
    return found / len(ids)

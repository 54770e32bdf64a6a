"""Distances in a feature space, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bdtune.defending import distances as own
from bdtune.plugins.data import Truth


def samples(count: int = 60) -> tuple[np.ndarray, Truth]:
    """Three classes of which class 0 is the target; some of the others are poison, two samples are cover."""
    rng = np.random.default_rng(3)
    labels = np.arange(count) % 3
    role = np.where((np.arange(count) % 7 == 1) & (labels > 0), 1, 0).astype(np.uint8)
    role[[2, 5]] = 2
    observed = np.where(role == 1, 0, labels)
    return rng.standard_normal((count, 4)).astype(np.float32), Truth(labels, observed, role, 0)


def slow(z: np.ndarray, truth: Truth) -> dict[str, float]:
    """Return the same by loops over all pairs."""
    kinds: dict[str, list[float]] = {name: [] for name in ("intra", "inter", "poison", "target", "own")}
    purity = []
    apart = [[math.dist(a, b) for b in z.astype(float)] for a in z.astype(float)]
    for i in range(len(z)):
        for j in range(len(z)):
            pair = (int(truth.role[i]), int(truth.role[j]))
            alike = truth.labels[i] == truth.labels[j]
            if i != j and pair == (0, 0):
                kinds["intra" if alike else "inter"].append(apart[i][j])
            if i != j and pair == (1, 1):
                kinds["poison"].append(apart[i][j])
            if pair == (1, 0) and truth.labels[j] == truth.target:
                kinds["target"].append(apart[i][j])
            if pair == (1, 0) and alike:
                kinds["own"].append(apart[i][j])
        if truth.role[i] == 1:
            nearest = sorted((j for j in range(len(z)) if j != i), key=apart[i].__getitem__)[:10]
            purity.append(float(np.mean(truth.role[nearest] == 1)))
    found = {f"distance_{name}": float(np.mean(values)) for name, values in kinds.items()}
    return {**found, "knn_purity": float(np.mean(purity))}


@pytest.mark.parametrize("block", [3, 100])
def test_distances_are_those_of_all_pairs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "BLOCK", block)
    z, truth = samples()
    assert own.distances(z, truth) == pytest.approx(slow(z, truth), abs=1e-6)


def test_of_many_samples_a_fixed_part_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    z, truth = samples(600)
    whole = own.distances(z, truth)
    monkeypatch.setattr(own, "MOST", 40)
    part = own.distances(z, truth)
    assert part == own.distances(z, truth)
    assert part != whole
    assert part == pytest.approx(whole, rel=0.15, abs=0.1)


def test_poison_that_lies_together_has_itself_as_neighbours() -> None:
    z, truth = samples(300)
    z[truth.is_poison] = 40 + 0.1 * z[truth.is_poison]
    found = own.distances(z, truth)
    assert found["knn_purity"] == 1
    assert found["distance_poison"] < 0.2 * found["distance_intra"] < found["distance_target"]


def test_without_poison_only_clean_pairs_are_known() -> None:
    z, truth = samples()
    clean = Truth(truth.labels, truth.labels, np.zeros(len(z), np.uint8), None)
    known = {name for name, value in own.distances(z, clean).items() if not math.isnan(value)}
    assert known == {"distance_intra", "distance_inter"}

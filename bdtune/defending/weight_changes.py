"""How far a repaired classifier's weights are from those that it started from. numpy only."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "model."
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Of batch norm: no weights."""
TOP = 0.01
"""Fraction of a layer's channels, those of the largest filters, at least one."""

SHORTCUT = re.compile(r"downsample|shortcut")
"""Of a residual block: what goes around it."""

Weights = dict[str, np.ndarray]


def weights_of(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Return a classifier's weights by name, from the input to the head, without batch norm's statistics.

    A stored artefact has its arrays in any order: numbered parts are put in the order of their numbers.
    """
    names = [name for name in arrays if name.startswith(PREFIX) and not name.endswith(BUFFERS)]
    return {name.removeprefix(PREFIX): arrays[name].astype(np.float64) for name in sorted(names, key=_place)}


def _place(name: str) -> tuple[bool, list[str | int]]:
    """Return what to sort a weight's name by: body.2 comes before body.10, and the head last."""
    parts = re.split(r"(\d+)", name)
    return name.startswith(f"{PREFIX}head."), [int(part) if part.isdigit() else part for part in parts]


def distance(before: Weights, after: Weights) -> float:
    """Return ||w - w_0|| / ||w_0|| over all weights, w_0 being those before."""
    far = np.sqrt(sum(np.square(after[name] - array).sum() for name, array in before.items()))
    return float(far / np.sqrt(sum(np.square(array).sum() for array in before.values())))


def distances(before: Weights, after: Weights) -> dict[str, float]:
    """Return the same for each convolution and linear layer by itself."""
    return {
        name.removesuffix(".weight"): distance({name: array}, {name: after[name]})
        for name, array in before.items()
        if array.ndim > 1 and array.any()
    }


def head_cosine(before: Weights, after: Weights) -> float:
    """Return the cosine of the angle between the head's weights before and after."""
    one, two = before["head.weight"].ravel(), after["head.weight"].ravel()
    return float(one @ two / max(np.linalg.norm(one) * np.linalg.norm(two), 1e-300))


def largest_filters(weights: Weights) -> float:
    """Return the mean norm of the largest 1 % of filters of the last convolution; nan without one.

    FT-SAM's account of itself: the norms of neurons that a trigger uses are large, and shrink.
    """
    filters = [array for name, array in weights.items() if array.ndim == 4 and not SHORTCUT.search(name)]
    if not filters:
        return float("nan")
    norms = np.sort(np.linalg.norm(filters[-1].reshape(len(filters[-1]), -1), axis=1))
    return float(norms[-max(1, int(TOP * len(norms))) :].mean())

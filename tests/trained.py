"""Images and surrogates on which attacks that train something are ready in a moment."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch

from bdtune.testing.small import nodes_of, shown

CLASSIFIER = {
    "surrogate": {"epochs": 4, "batch_size": 16, "optimizer": "adam", "lr": 0.01, "augment": "none"},
    "surrogate_model": {"name": "resnet18", "width": 4},
}
"""Knobs of a surrogate that learns `quarters` in a moment."""


def quarters(n=96, side=16, noise=90, brighter=120):
    """Return images uint8 [n, side, side, 3] of four classes that take turns: which quarter is brighter."""
    images = np.random.default_rng(0).integers(0, noise, (n, side, side, 3), dtype=np.uint8)
    width = side // 4
    for row in range(n):
        images[row, :, width * (row % 4) : width * (row % 4 + 1)] += brighter
    return images


@contextmanager
def one_thread():
    """Compute as tests do; fixtures of a module are made before the test's own setting holds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def upstream(attack, images, classes=4):
    """Return the nodes of what an attack trains on images (uint8 [N, H, W, C])."""
    return nodes_of(attack, shown(images, np.arange(len(images)) % classes, classes))

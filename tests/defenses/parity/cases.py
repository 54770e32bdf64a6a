"""Numbers that published code gives on tiny inputs, and how many digits of them ours have.

A file NAME.json holds the cases of a defense: `reference` (repository and commit), `what` is compared, what
is `kept` different on purpose, `inputs` and `expected` (the published code's results), `digits`, which ours
must have. Numbers alone are kept, none of the code that gave them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import bdtune
from bdtune.plugins.data import ImageSet
from bdtune.training.batches import Batch

FOLDER = Path(__file__).parent
EXACT = 15
"""Digits of what is the same."""


@dataclass(frozen=True)
class Case:
    """One comparison."""

    reference: str
    what: str
    kept: str
    inputs: dict[str, Any]
    expected: dict[str, Any]
    digits: int

    def array(self, name: str) -> np.ndarray:
        """Return an input as it was stored: int64 or float64."""
        return np.asarray(self.inputs[name])

    def tensor(self, name: str) -> torch.Tensor:
        """Return an input, floats in float32 as the published code has them."""
        value = self.array(name)
        return torch.tensor(value, dtype=torch.float32 if value.dtype.kind == "f" else torch.int64)

    def agree(self, **ours: Any) -> None:
        """Raise `AssertionError` unless each expected result is given, with as many digits as promised."""
        assert ours.keys() == self.expected.keys()
        found = {name: digits(value, self.expected[name]) for name, value in ours.items()}
        assert min(found.values()) >= self.digits, f"{self.what}: digits {found}, expected {self.digits}"


def digits(ours: Any, theirs: Any) -> int:
    """Return how many digits of the largest value agree in all values; whole numbers agree in all or none."""
    one = np.asarray(ours.detach() if isinstance(ours, torch.Tensor) else ours)
    two = np.asarray(theirs)
    assert one.shape == two.shape, f"shapes {one.shape} and {two.shape}"
    if np.array_equal(one, two):
        return EXACT
    if two.dtype.kind != "f" or not np.isfinite(one).all():
        return 0
    apart = np.abs(one - two).max() / np.abs(two).max()
    return min(EXACT, math.floor(-math.log10(apart))) if apart < 1 else 0


def names() -> list[str]:
    """Return the defenses that are compared."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def cases(defense: str) -> dict[str, Case]:
    """Return the cases of a defense by name."""
    stored = json.loads((FOLDER / f"{defense}.json").read_text(encoding="utf-8"))
    return {name: Case(**entry) for name, entry in stored.items()}


def batch(labels: Any) -> Batch:
    """Return a batch with these labels, its images left out."""
    known = torch.as_tensor(labels)
    return Batch(torch.zeros(len(known), 1, 1, 1), known, torch.arange(len(known)))


def pixels(count: int, side: int = 8) -> np.ndarray:
    """Return uint8 images [count, side, side, 3] without random numbers."""
    n, i, j, c = np.ogrid[:count, :side, :side, :3]
    return ((31 * n + 57 * i + 23 * j + 91 * c + (i * j * (n + 1)) % 97) % 256).astype(np.uint8)


def patterned_network(model: str = "resnet_s", side: int = 8, **knobs: Any) -> Any:
    """Return a small network for images of three classes, its weights without random numbers."""
    network = bdtune.model(model, **(knobs or {"stem_width": 4})).build(3, (side, side, 3)).eval()
    with torch.no_grad():
        for place, weight in enumerate(network.parameters()):
            wave = torch.sin(0.7 * torch.arange(weight.numel()) + place)
            weight.copy_((wave / math.sqrt(weight[0].numel())).view_as(weight) + (weight.ndim == 1))
    return network


def images(
    count: int,
    side: int = 8,
    labels: np.ndarray | None = None,
    mean: tuple[float, ...] = (0.4, 0.5, 0.6),
    std: tuple[float, ...] = (0.2, 0.25, 0.3),
) -> ImageSet:
    """Return these images as a data set of three classes."""
    observed = np.zeros(count, np.int64) if labels is None else labels
    return ImageSet(pixels(count, side), observed, 3, mean, std)


def normalised(data: ImageSet) -> torch.Tensor:
    """Return all images as a network sees them, float32 [N, C, H, W]."""
    planes = torch.tensor(data.images_at(np.arange(len(data)))).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (planes - mean) / std

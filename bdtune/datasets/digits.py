"""Handwritten digits: 1,797 real 8x8 grey images that scikit-learn ships, brought to 3x16x16 or 3x32x32.

Source: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), UCI Machine Learning
Repository, CC BY 4.0; the test part of it, as in scikit-learn's `load_digits`.
Departures: a fixed split of our own, stratified by class, 1,347 for training and 450 for testing; grey levels
0 to 16 become 0 to 255, enlarged with `resize` and repeated in three channels.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image

from bdtune.engine.key import derive_seed
from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.images import FILTERS

if TYPE_CHECKING:
    from bdtune.plugins.dataset import SplitName

_TRAIN = 1347


class Digits(Dataset, defaults={"mirrors": False}):
    """The built-in data set: no files, no network, seconds per epoch."""

    side: Literal[16, 32] = 16
    """Side of the images in pixels."""
    image_size: None = None
    """Not used: see `side`."""

    title: ClassVar[str] = "scikit-learn's digits"
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.309, 0.309, 0.309)
    std: ClassVar[tuple[float, ...]] = (0.348, 0.348, 0.348)
    counts: ClassVar = {"train": (_TRAIN,), "test": (1797 - _TRAIN,)}

    def records(self, split: SplitName, root: Path) -> Records:
        levels, labels = _shipped()
        rows = _rows(labels, split)
        grey = np.rint(levels[rows] * (255 / 16)).astype(np.uint8)
        size, resize = (self.side, self.side), FILTERS[self.resize]
        large = np.stack([np.asarray(Image.fromarray(image).resize(size, resize)) for image in grey])
        images = np.repeat(large[..., None], 3, axis=3)
        return Records(labels[rows], tuple("0123456789"), arrays=images)


def _shipped() -> tuple[np.ndarray, np.ndarray]:
    """Return grey levels float64 [1797, 8, 8] and labels int64 [1797] out of scikit-learn's file.

    `load_digits` returns the same, but importing scikit-learn takes seconds of each process of a sweep.
    """
    package = find_spec("sklearn")
    assert package is not None, "scikit-learn is one of our dependencies"
    assert package.origin is not None
    rows = np.loadtxt(Path(package.origin).with_name("datasets") / "data" / "digits.csv.gz", delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def _rows(labels: np.ndarray, split: SplitName) -> np.ndarray:
    """Return the rows of a split: the same share of each class, rounded so that 1,347 train in all."""
    exact = np.bincount(labels) * (_TRAIN / len(labels))
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: _TRAIN - shares.sum()]] += 1
    rows = []
    for label, share in enumerate(shares):
        order = np.random.default_rng(derive_seed(0, "digits", label)).permutation(
            np.flatnonzero(labels == label)
        )
        rows.append(order[:share] if split == "train" else order[share:])
    return np.sort(np.concatenate(rows))

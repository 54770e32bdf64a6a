"""Images that are known to be clean: taken out of the training set before anything is poisoned.

Shape letters: N images of the training set, K classes.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

import numpy as np
from pydantic import PlainValidator

from bdtune.checking import show
from bdtune.engine.key import derive_seed
from bdtune.knobs import Frozen
from bdtune.plugins.poison_plan import drawn_order

_PER_CLASS = re.compile(r"([1-9][0-9]{0,8}) per class")


def _checked(value: Any) -> float | int | str:
    if isinstance(value, str) and _PER_CLASS.fullmatch(value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        if value < 1:
            return float(value)
        if float(value).is_integer():
            return int(value)
    expected = "expected a share below 1, a count such as 500, or text such as '10 per class'"
    raise ValueError(f"{expected}, got {show(value)}")


MOST = 2**31
"""Images: more than any data set has, and few enough to count with."""
CleanSize = Annotated[float | int | str, PlainValidator(_checked)]
"""How many images: a share of each class (0.05), a count over all classes (500), or "10 per class"."""


class Parts(NamedTuple):
    """Ids int64 of the training set's images, ascending: each image is in one part."""

    clean: np.ndarray
    select_clean: np.ndarray
    rest: np.ndarray


class Reserve(Frozen):
    """How many images are taken out, drawn from each class.

    A larger clean set contains a smaller one, and its size does not change which images are held out.
    """

    clean: CleanSize = 0.0
    """What a defense is handed."""
    select_clean: CleanSize = 0.0
    """What is held out, for a choice among settings."""

    def __bool__(self) -> bool:
        return bool(self.clean) or bool(self.select_clean)

    def parts(self, labels: np.ndarray, seed: int) -> Parts:
        """Return the parts of a training set of true labels int64 [N]."""
        part = np.zeros(len(labels), np.uint8)
        sizes = np.bincount(labels)
        first, last = _by_class(self.clean, sizes), _by_class(self.select_clean, sizes)
        order = drawn_order(np.arange(len(labels)), len(labels), derive_seed(seed, "clean set"))
        for label in np.flatnonzero(first + last):
            members = order[labels[order] == label]
            part[members[: first[label]]] = 1
            part[members[len(members) - last[label] :]] = 2
        return Parts(*(np.flatnonzero(part == each) for each in (1, 2, 0)))

    def clean_images(self, labels: np.ndarray) -> int:
        """Return how many images a defense is handed."""
        return int(_by_class(self.clean, np.bincount(labels)).sum())

    def shortage(self, labels: np.ndarray) -> str:
        """Return which class has too few images for it, in words; nothing where all have enough."""
        sizes = np.bincount(labels)
        taken = _by_class(self.clean, sizes) + _by_class(self.select_clean, sizes)
        short = np.flatnonzero((taken >= sizes) & (taken > 0))
        return f"{taken[short[0]]} of the {sizes[short[0]]} of class {short[0]}" if len(short) else ""


def _by_class(size: float | str, sizes: np.ndarray) -> np.ndarray:
    """Return how many images of each class are taken, int64 [K]; a count is shared out by their sizes."""
    if isinstance(size, str):
        return np.where(sizes > 0, int(size.split()[0]), 0)
    if size < 1:
        return np.floor(size * sizes + 0.5).astype(np.int64)
    size = min(size, MOST)
    exact = size * sizes / max(1, sizes.sum())
    counts = np.floor(exact).astype(np.int64)
    largest = np.argsort(counts - exact, kind="stable")  # the largest remainder first
    counts[largest[: int(size) - int(counts.sum())]] += 1
    return counts

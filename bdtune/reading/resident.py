"""Data sets in the memory of one process; the cluster shares one copy per node instead."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import psutil

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from bdtune.plugins.dataset import Dataset, Split, SplitName

Pipeline = Literal["auto", "resident", "stream"]

MEMORY_SHARE = 0.25
"""A set that would fill more of the machine's memory is streamed: a poisoned copy must fit beside it."""


@dataclass(frozen=True)
class InProcess:
    """Loads splits on demand; `root` is the data sets' folder."""

    root: Path | None = None
    pipeline: Pipeline = "auto"

    def split(self, dataset: Dataset, split: SplitName) -> Split:
        if must_stream(dataset, split, self.root, self.pipeline):
            return dataset.stream(split, self.root)
        return dataset.load(split, self.root)

    def labels(self, dataset: Dataset, split: SplitName) -> np.ndarray:
        return dataset.labels(split, self.root)


@lru_cache(maxsize=64)
def must_stream(dataset: Dataset, split: SplitName, root: Path | None, pipeline: Pipeline) -> bool:
    """Return whether a split is to be read in blocks: on request, or because it does not fit.

    By all memory, not by what is free: a streamed training sees another order and is another result, so the
    same command must decide alike at every load.
    """
    if pipeline != "auto":
        return pipeline == "stream"
    height, width, channels = dataset.stream(split, root).images.shape[1:]
    size = len(dataset.labels(split, root)) * height * width * channels
    return size > MEMORY_SHARE * psutil.virtual_memory().total

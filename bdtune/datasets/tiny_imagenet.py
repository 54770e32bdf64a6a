"""Tiny ImageNet: 200 ImageNet classes at 64x64 pixels.

Source: Tiny ImageNet Visual Recognition Challenge (Le and Yang, 2015), Stanford CS 231N; ImageNet's terms,
non-commercial research.
Departures: the labelled validation split is the test set, for the original test labels are not public. Labels
follow the WordNet ids in ascending order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.files import class_folders

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import SplitName


class TinyImagenet(Dataset):
    """Tiny ImageNet, 500 training and 50 test images per class."""

    title: ClassVar[str] = "Tiny ImageNet"
    parquet: ClassVar[str] = "tiny-imagenet"
    layouts: ClassVar[tuple[str, ...]] = (
        "tiny-imagenet-200/ (train/<WordNet id>/images, val/val_annotations.txt)",
    )
    obtain: ClassVar[str] = "Get http://cs231n.stanford.edu/tiny-imagenet-200.zip and unpack it there"
    num_classes: ClassVar[int] = 200
    mean: ClassVar[tuple[float, ...]] = (0.4802, 0.4481, 0.3975)
    std: ClassVar[tuple[float, ...]] = (0.2770, 0.2691, 0.2821)
    counts: ClassVar = {"train": ((500,) * 200,), "test": ((50,) * 200,)}

    def records(self, split: SplitName, root: Path) -> Records | None:
        folder = root / "tiny-imagenet-200"
        if not (folder / "train").is_dir():
            return None
        classes = sorted(child.name for child in (folder / "train").iterdir() if child.is_dir())
        if split == "train":
            return class_folders([folder / "train" / name / "images" for name in classes], classes)
        return _validation(folder / "val", classes)


def _validation(folder: Path, classes: list[str]) -> Records | None:
    table = folder / "val_annotations.txt"
    if not table.is_file() or not table.stat().st_size:
        return None
    rows = [line.split("\t")[:2] for line in table.read_text(encoding="utf-8").splitlines()]
    number = {name: label for label, name in enumerate(classes)}
    # an id without a training folder becomes -1, which the check of labels reports
    labels = np.array([number.get(name, -1) for _, name in rows], np.int64)
    paths = tuple(folder / "images" / file for file, _ in rows)
    return Records(labels, tuple(classes), paths=paths, files=(table, folder / "images"))

"""GTSRB: photographs of German traffic signs in 43 classes of very different size.

Source: Man vs. computer: Benchmarking machine learning algorithms for traffic sign recognition (Stallkamp
et al., Neural Networks 2012); free for research and teaching.
Departures: whole images, which differ in size, stretched to `image_size`, without the annotated box; not
mirrored, as a mirrored sign is none, or another. Two editions of the training set are in use and both are
accepted: the final one (39,209 images) and that of the competition's first stage (26,640), which torchvision
fetches; their fingerprints differ. BackdoorBench and others leave pixels in [0, 1], which is `mean` 0 and
`std` 1 here.
"""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.files import class_folders, torchvision_download

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import SplitName

Scale = Annotated[float, Field(gt=0)]

_FINAL_TRAIN = (
    *(210, 2220, 2250, 1410, 1980, 1860, 420, 1440, 1410, 1470, 2010, 1320, 2100, 2160, 780, 630, 420, 1110),
    *(1200, 210, 360, 330, 390, 510, 270, 1500, 600, 240, 540, 270, 450, 780, 240, 689, 420, 1200, 390, 210),
    *(2070, 300, 360, 240, 240),
)
_TEST = (
    *(60, 720, 750, 450, 660, 630, 150, 450, 450, 480, 660, 420, 690, 720, 270, 210, 150, 360, 390, 60, 90),
    *(90, 120, 150, 90, 480, 180, 60, 150, 90, 150, 270, 60, 210, 120, 390, 120, 60, 690, 90, 90, 60, 90),
)


class Gtsrb(Dataset, defaults={"image_size": 32, "mirrors": False}):
    """GTSRB, 43 classes, 12,630 test images."""

    mean: tuple[float, float, float] = (0.3403, 0.3121, 0.3214)
    """Mean per channel that is subtracted from pixels in [0, 1]; the training images' own by default."""
    std: tuple[Scale, Scale, Scale] = (0.2724, 0.2608, 0.2669)
    """Standard deviation per channel that they are divided by; the training images' own by default."""

    title: ClassVar[str] = "GTSRB"
    parquet: ClassVar[str] = "gtsrb"
    layouts: ClassVar[tuple[str, ...]] = (
        "torchvision's gtsrb/GTSRB/ (Training or Final_Training/Images, Final_Test/Images)",
    )
    num_classes: ClassVar[int] = 43
    counts: ClassVar = {"train": (_FINAL_TRAIN, 26640), "test": (_TEST,)}

    def records(self, split: SplitName, root: Path) -> Records | None:
        folder = root / "gtsrb"
        return _train_folder(folder / "GTSRB") if split == "train" else _test_folder(folder)

    def download(self, root: Path) -> None:
        torchvision_download("GTSRB", root, split="train")
        torchvision_download("GTSRB", root, split="test")


def _train_folder(folder: Path) -> Records | None:
    for place in (folder / "Final_Training" / "Images", folder / "Training"):
        if place.is_dir():
            classes = sorted(child for child in place.iterdir() if child.is_dir())
            return class_folders(classes, [child.name for child in classes])
    return None


def _test_folder(folder: Path) -> Records | None:
    table, images = folder / "GT-final_test.csv", folder / "GTSRB" / "Final_Test" / "Images"
    if not table.is_file() or not images.is_dir():
        return None
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    if not rows:
        return None
    labels = np.array([int(row["ClassId"]) for row in rows], np.int64)
    return Records(labels, paths=tuple(images / row["Filename"] for row in rows), files=(table, images))

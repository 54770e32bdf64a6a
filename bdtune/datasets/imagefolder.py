"""Any folder with one subfolder of images per class: train/<class>/ and test/<class>/ (or val).

Source: the layout of torchvision's ImageFolder; licence and paper are those of your data.
Departures: labels follow the class names of the training folder, sorted; a class missing in one split is an
error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.files import class_folders, inside, split_folder

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import SplitName


class Imagefolder(Dataset):
    """Your own images, in one folder per class."""

    path: str = Field(min_length=1, examples=["my_images"])
    """The folder, relative to `data_root`."""
    num_classes: int = Field(ge=2, examples=[2])
    """Number of classes, compared with what is found."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per channel of training pixels in [0, 1]; ImageNet's by default."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation per channel of training pixels in [0, 1]; ImageNet's by default."""

    title: ClassVar[str] = "A folder of images"

    def accepted(self) -> tuple[str, ...]:
        return (f"{self.path}/train/<class>/ with {self.path}/test/<class>/ (or val)",)

    def records(self, split: SplitName, root: Path) -> Records | None:
        folder = inside(root, self.path)
        train, wanted = split_folder(folder, "train"), split_folder(folder, split)
        if train is None or wanted is None:
            return None
        classes = {child.name for place in (train, wanted) for child in place.iterdir() if child.is_dir()}
        names = sorted(classes)
        return class_folders([wanted / name for name in names], names)

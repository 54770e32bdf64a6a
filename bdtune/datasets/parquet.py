"""Any Parquet data set in the Hugging Face hub's layout: train.parquet and test.parquet in one folder.

Source: the image layout of the Hugging Face hub, a column `image` (struct of encoded `bytes` and `path`) and
a column `label`, class names in the schema metadata; licence and paper are those of your data.
Departures: files named train-*.parquet, a subfolder data/ and the column names img and fine_label are
accepted; images must be inside the file (`bytes`), not beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.files import inside, parquet_records

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import SplitName


class Parquet(Dataset):
    """Your own images, in Parquet files."""

    path: str = Field(min_length=1, examples=["my_images"])
    """The folder, relative to `data_root`."""
    num_classes: int = Field(ge=2, examples=[2])
    """Number of classes, compared with what is found."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean per channel of training pixels in [0, 1]; ImageNet's by default."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation per channel of training pixels in [0, 1]; ImageNet's by default."""

    title: ClassVar[str] = "A Parquet data set"

    def accepted(self) -> tuple[str, ...]:
        return (f"{self.path}/train.parquet with {self.path}/test.parquet",)

    def records(self, split: SplitName, root: Path) -> Records | None:
        return parquet_records(inside(root, self.path), split)

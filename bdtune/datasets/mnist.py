"""MNIST: 70,000 grey images of handwritten digits, 28x28 pixels in ten classes.

Source: Gradient-based learning applied to document recognition (LeCun et al., 1998); the files of the MNIST
database of handwritten digits (LeCun, Cortes and Burges), used in research throughout.
Departures: grey levels are repeated in three channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.errors import DataError, Problem
from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.files import torchvision_download

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import SplitName

_PREFIX = {"train": "train", "test": "t10k"}
_BYTES = 8
"""What an IDX file says of its numbers: uint8."""


class Mnist(Dataset, defaults={"mirrors": False}):
    """MNIST, 60,000 training and 10,000 test images."""

    title: ClassVar[str] = "MNIST"
    parquet: ClassVar[str] = "mnist"
    layouts: ClassVar[tuple[str, ...]] = ("torchvision's MNIST/raw/ (train-images-idx3-ubyte, ...)",)
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]] = (0.1307, 0.1307, 0.1307)
    std: ClassVar[tuple[float, ...]] = (0.3081, 0.3081, 0.3081)
    counts: ClassVar = {
        "train": ((5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),),
        "test": ((980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),),
    }

    def records(self, split: SplitName, root: Path) -> Records | None:
        bases = (base / "MNIST" / "raw" for base in (root, root / self.parquet))
        folder = next((each for each in bases if each.is_dir()), None)
        if folder is None:
            return None
        files = tuple(folder / f"{_PREFIX[split]}-{name}-ubyte" for name in ("images-idx3", "labels-idx1"))
        pixels, labels = _idx(files[0], 3), _idx(files[1], 1)
        if len(pixels) != len(labels):
            problem = Problem("dataset", f"expected {len(pixels)} labels", str(len(labels)), str(files[1]))
            raise DataError(problem)
        images = np.repeat(pixels[..., None], 3, axis=3)
        return Records(labels.astype(np.int64), tuple("0123456789"), arrays=images, files=files)

    def download(self, root: Path) -> None:
        torchvision_download("MNIST", root)


def _idx(file: Path, axes: int) -> np.ndarray:
    """Return the array uint8 of an IDX file with so many axes; raises `DataError` for any other content."""
    expected = f"expected an IDX file of uint8 with {axes} axes"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(Problem("dataset", expected, str(error.strerror), str(file))) from error
    header = 4 + 4 * axes
    shape = tuple(np.frombuffer(content[4:header], ">u4").tolist()) if len(content) >= header else ()
    if content[:4] != bytes([0, 0, _BYTES, axes]) or len(content) - header != np.prod(shape, dtype=np.int64):
        hint = "Remove the folder and fetch it again with --download"
        raise DataError(Problem("dataset", expected, f"{len(content)} other bytes", str(file), hint))
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)

"""VGGFace2-30: faces of thirty people, 300 training and 75 test images each, 224x224 pixels.

Source: VGGFace2: A dataset for recognising faces across pose and age (Cao et al., FG 2018), arXiv:1710.08092;
the thirty people as listed for GSSD, appendix B.1. Non-commercial research.
Departures: which images of a person train and which test is not published; a fixed seeded choice is made
among the sorted file names. Stretched to `image_size`, without cropping to the face.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.engine.key import derive_seed
from bdtune.errors import DataError, Problem
from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.files import image_files

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import SplitName

PEOPLE = (
    *(557, 788, 1514, 2162, 2467, 3334, 3676, 4908, 5491, 5863, 6248, 7138, 7305, 7620, 8316),
    *(591, 1480, 2035, 2251, 2933, 3416, 4215, 5318, 5640, 5891, 7084, 7222, 7489, 8144, 8568),
)
_TRAIN, _TEST = 300, 75


class Vggface230(Dataset, defaults={"image_size": 224}):
    """VGGFace2-30, out of a folder of VGGFace2."""

    title: ClassVar[str] = "VGGFace2-30"
    parquet: ClassVar[str] = "vggface2_30"
    layouts: ClassVar[tuple[str, ...]] = (
        "vggface2/ with train/n000557/ and so on (a person may lie under train or test)",
    )
    obtain: ClassVar[str] = "VGGFace2 is not distributed by its authors any more; it needs a copy of your own"
    num_classes: ClassVar[int] = 30
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2023, 0.1994, 0.2010)
    counts: ClassVar = {"train": ((_TRAIN,) * 30,), "test": ((_TEST,) * 30,)}

    def records(self, split: SplitName, root: Path) -> Records | None:
        folder = root / "vggface2"
        places = [_person(folder, number) for number in PEOPLE]
        return _choose(split, folder, places) if folder.is_dir() else None


def _person(folder: Path, number: int) -> Path | None:
    name = f"n{number:06d}"
    places = (folder / part / name for part in ("train", "test", "."))
    return next((place for place in places if place.is_dir()), None)


def _choose(split: SplitName, folder: Path, places: list[Path | None]) -> Records:
    paths: list[Path] = []
    problems = []
    for number, place in zip(PEOPLE, places, strict=True):
        files = image_files(place) if place else []
        if len(files) < _TRAIN + _TEST:
            expected = f"expected at least {_TRAIN + _TEST} images of person n{number:06d}"
            problems.append(Problem("dataset", expected, str(len(files)), str(place or folder)))
        order = np.random.default_rng(derive_seed(0, "vggface2_30", number)).permutation(len(files))
        part = order[:_TRAIN] if split == "train" else order[_TRAIN : _TRAIN + _TEST]
        paths += [files[row] for row in np.sort(part)]
    if problems:
        raise DataError(problems)
    labels = np.repeat(np.arange(len(PEOPLE)), _TRAIN if split == "train" else _TEST)
    names = tuple(f"n{number:06d}" for number in PEOPLE)
    return Records(labels, names, paths=tuple(paths), files=tuple(place for place in places if place))

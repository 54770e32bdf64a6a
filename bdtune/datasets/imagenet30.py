"""ImageNet-30: thirty ImageNet classes without overlap, 224x224 pixels.

Source: Using Self-Supervised Learning Can Improve Model Robustness and Uncertainty (Hendrycks et al.,
NeurIPS 2019), section 4; the classes as listed for GSSD. ImageNet's terms, non-commercial research.
Departures: stretched to `image_size` without cropping. Out of a plain ImageNet folder the test set is the
validation part, 50 images per class; the ready-made edition has 100.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from bdtune.errors import DataError, Problem
from bdtune.plugins.dataset import Dataset, Records
from bdtune.reading.files import class_folders, split_folder

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.plugins.dataset import SplitName

CLASSES = {
    "acorn": "n12267677",
    "airliner": "n02690373",
    "ambulance": "n02701002",
    "american alligator": "n01698640",
    "banjo": "n02787622",
    "barn": "n02793495",
    "bikini": "n02837789",
    "digital clock": "n03196217",
    "dragonfly": "n02268443",
    "dumbbell": "n03255030",
    "forklift": "n03384352",
    "goblet": "n03443371",
    "grand piano": "n03452741",
    "hotdog": "n07697537",
    "hourglass": "n03544143",
    "manhole cover": "n03717622",
    "mosque": "n03788195",
    "nail": "n03804744",
    "parking meter": "n03891332",
    "pillow": "n03938244",
    "revolver": "n04086273",
    "rotary dial telephone": "n03187595",
    "schooner": "n04147183",
    "snowmobile": "n04252077",
    "soccer ball": "n04254680",
    "stingray": "n01498041",
    "strawberry": "n07745940",
    "tank": "n04389033",
    "toaster": "n04442312",
    "volcano": "n09472597",
}


class Imagenet30(Dataset, defaults={"image_size": 224}):
    """ImageNet-30, out of a folder of ImageNet or of the thirty classes alone."""

    title: ClassVar[str] = "ImageNet-30"
    parquet: ClassVar[str] = "imagenet30"
    layouts: ClassVar[tuple[str, ...]] = (
        "imagenet30/ or imagenet/ with train/<class> and val/<class> or test/<class>, "
        "where <class> is a WordNet id or a name such as grand_piano",
    )
    obtain: ClassVar[str] = "ImageNet needs an account at https://image-net.org/download"
    num_classes: ClassVar[int] = 30
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)

    def records(self, split: SplitName, root: Path) -> Records | None:
        for name in ("imagenet30", "imagenet"):
            folder = split_folder(root / name, split)
            if folder is not None:
                return _out_of(folder)
        return None


def _out_of(folder: Path) -> Records:
    """Return the thirty classes' records; raises `DataError` naming every class that has no folder."""
    present = {child.name.lower().replace("_", " "): child for child in folder.iterdir() if child.is_dir()}
    places = {name: present.get(wordnet, present.get(name)) for name, wordnet in CLASSES.items()}
    absent = [f"{name} ({CLASSES[name]})" for name, place in places.items() if place is None]
    if absent:
        got = f"no folder of {', '.join(absent)}"
        raise DataError(Problem("dataset", "expected a folder for each of the 30 classes", got, str(folder)))
    return class_folders([place for place in places.values() if place is not None], list(places))

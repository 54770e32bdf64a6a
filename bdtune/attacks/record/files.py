"""Records of BackdoorBench: what lies in a folder `record/<name>/`, read without running anything from it.

Written by its version 2 (2023 and later): `attack_result.pt`, a dictionary with the names in `KEYS`. `model`
is a network's state; `bd_train` and `bd_test` hold, of each image that the attack changed, its position in
the clean split, its new and its true class, and the path of a PNG file below the folder.

Shape letters: n changed images, N images of the clean split.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bdtune.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.plugins.poison_plan import SplitName

FILE = "attack_result.pt"
KEYS = ("model_name", "num_classes", "model", "data_path", "img_size", "clean_data", "bd_train", "bd_test")
VERSION = "BackdoorBench's version 2 (2023 or later) writes them"
State = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Part:
    """The changed images of a split."""

    total: int  # N
    ids: np.ndarray  # int64 [n], ascending: positions in the clean split
    labels: np.ndarray  # int64 [n], the classes that the attack gave them
    true: np.ndarray  # int64 [n]
    files: tuple[Path, ...]  # PNG files, in the order of ids


@dataclass(frozen=True, eq=False)
class Record:
    """What a record says, without images and weights."""

    folder: Path
    data: str  # BackdoorBench's name of the data set
    num_classes: int
    image_shape: tuple[int, int, int]  # (H, W, C)
    network: str  # BackdoorBench's name of the network
    shapes: Mapping[str, tuple[int, ...]]  # of the network's state
    broken: tuple[str, ...]  # names in that state whose values are not all finite
    train: Part
    test: Part

    def part(self, split: SplitName) -> Part:
        """Return the changed images of a split."""
        return self.train if split == "train" else self.test

    @property
    def target(self) -> int | None:
        """The class that all triggered test images are to have; None: each class goes to the next."""
        goals = np.unique(self.test.labels)
        return int(goals[0]) if len(goals) == 1 else None

    def goals(self, true: np.ndarray) -> np.ndarray:
        """Return the class (int64) that the attack wants for images of the given true classes."""
        true = np.asarray(true, np.int64)
        return (true + 1) % self.num_classes if self.target is None else np.full_like(true, self.target)

    @property
    def is_poison(self) -> np.ndarray:
        """bool [n]: changed training images with the class that the attack wants; the others are cover."""
        return self.train.labels == self.goals(self.train.true)


def read_record(folder: Path) -> Record:
    """Return a record; raises `ConfigError` where the folder is none that can be read."""
    return _read(folder, _stamp(folder))


def read_state(folder: Path) -> State:
    """Return the weights of a record's network by BackdoorBench's names; raises `ConfigError`."""
    found = _loaded(folder)["model"]
    return {name.removeprefix("module."): tensor.numpy() for name, tensor in found.items()}


def record_digest(folder: Path) -> str:
    """Return a digest of a record's content: its file and every image that the file names."""
    return _digest(folder, _stamp(folder))


def no_record(expected: str, got: str, hint: str = "") -> ConfigError:
    """Return the error of a folder that is not a record as it should be."""
    return ConfigError(Problem("path", expected, got, hint=hint))


Stamp = tuple[tuple[str, int, int], ...]


def _stamp(folder: Path) -> Stamp:
    """Return what changes with the record: size and time of its file, times of its folders of images."""
    if not folder.is_dir():
        raise no_record(f"expected a folder of BackdoorBench's, with {FILE} in it", f"'{folder}'")
    if not (folder / FILE).is_file():
        kept = sorted(path.name for path in folder.iterdir())[:5]
        raise no_record(
            f"expected a folder with {FILE} in it", f"'{folder}' with {', '.join(kept) or 'none'}"
        )
    places = [folder / FILE, *sorted(path for path in folder.glob("bd_*/*") if path.is_dir())]
    stats = [(str(path), path.stat()) for path in places]
    return tuple((name, 0 if name != stats[0][0] else s.st_size, s.st_mtime_ns) for name, s in stats)


@lru_cache(maxsize=16)
def _digest(folder: Path, _stamp: Stamp) -> str:
    record = read_record(folder)
    sha = hashlib.sha256((folder / FILE).read_bytes())
    for part in (record.train, record.test):
        for file in part.files:
            sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()


@lru_cache(maxsize=16)
def _read(folder: Path, _stamp: Stamp) -> Record:
    raw = _loaded(folder)
    if raw["bd_train"] is None:
        got = "none: its attack trains in a way of its own"
        raise no_record("expected a record with a poisoned training set", got)
    height, width, channels = _numbers(raw["img_size"], "img_size", 3)
    (num_classes,) = _numbers([raw["num_classes"]], "num_classes", 1)
    record = Record(
        folder=folder,
        data=str(raw["clean_data"]),
        num_classes=num_classes,
        image_shape=(height, width, channels),
        network=str(raw["model_name"]),
        shapes=_shapes(raw["model"]),
        broken=_broken(raw["model"]),
        train=_part(folder, raw["bd_train"], "bd_train"),
        test=_part(folder, raw["bd_test"], "bd_test"),
    )
    _check_goals(record)
    return record


def _loaded(folder: Path) -> dict[str, Any]:
    """Return the dictionary in the record's file: plain values, tensors and arrays, nothing that runs."""
    import pickle

    import torch

    file = folder / FILE
    try:
        with torch.serialization.safe_globals(_harmless()):
            raw = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:GLOBAL|global|class) `?([\w.]+)", str(error))
        got = f"{file} with {named[1]}" if named else f"{file} ({str(error).splitlines()[0]})"
        expected = "expected a file of plain values, tensors and NumPy arrays"
        raise no_record(expected, got, "Objects of other kinds could run code and are not loaded") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise no_record("expected a file of torch.save", f"{file} ({str(error).splitlines()[0]})") from error
    missing = [key for key in KEYS if not isinstance(raw, dict) or key not in raw]
    if missing:
        got = f"{file} without {', '.join(missing)}"
        raise no_record(f"expected a dictionary with {', '.join(KEYS)}", got, VERSION)
    return raw


def _harmless() -> list[Any]:
    """Return what makes NumPy's arrays and numbers, under the names that old and new files have for it."""
    import _codecs

    from numpy._core import multiarray

    kinds = {
        type(np.dtype(kind)) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "?")
    }
    made: list[Any] = [np.ndarray, np.dtype, _codecs.encode, *kinds]
    for name in ("_reconstruct", "scalar"):
        function = getattr(multiarray, name)
        made += [(function, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    return made


def _part(folder: Path, raw: Any, what: Literal["bd_train", "bd_test"]) -> Part:
    """Return the changed images of a split, after a look at the state of BackdoorBench's data set."""
    keys = ("bd_data_container", "original_index_array", "poison_indicator")
    container = raw.get("bd_data_container") if isinstance(raw, dict) else None
    if not isinstance(container, dict) or not isinstance(container.get("data_dict"), dict):
        raise no_record(f"expected {what} to hold {', '.join(keys)}", "another layout", VERSION)
    flags, rows = (np.asarray(raw[key]) for key in reversed(keys[1:]))
    ids = np.flatnonzero(flags)
    if what == "bd_train" and not np.array_equal(rows, np.arange(len(flags))):
        raise no_record(f"expected {what} to be of all {len(flags)} training images", f"{len(rows)} of them")
    if what == "bd_test":
        ids = np.sort(rows[flags[rows] != 0]).astype(np.int64)
    entries = {int(key): value for key, value in container["data_dict"].items()}
    absent = [i for i in ids.tolist() if not _is_entry(entries.get(i))]
    if absent or not len(ids):
        got = f"none for {len(absent)} of {len(ids)}, such as {absent[0]}" if absent else "no image at all"
        raise no_record(f"expected a file and two classes for each changed image of {what}", got)
    facts = np.array([[int(v) for v in entries[i]["other_info"]] for i in ids.tolist()], np.int64)
    files = tuple(_file(folder, str(entries[i]["path"])) for i in ids.tolist())
    lost = [file for file in files if not file.is_file()]
    if lost:
        got = f"{len(lost)} of {len(files)} missing, such as {lost[0].relative_to(folder)}"
        raise no_record(f"expected the images of {what} in the folder", got)
    return Part(len(flags), ids, facts[:, 0], facts[:, 1], files)


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and "path" in value and len(value.get("other_info", ())) == 2


def _file(folder: Path, written: str) -> Path:
    """Return where an image lies now: the record may have been moved since its path was written."""
    last = PurePosixPath(written.replace("\\", "/")).parts[-3:]
    if len(last) < 3 or ".." in last:
        raise no_record("expected paths such as bd_train_dataset/3/17.png", f"'{written}'")
    return folder.joinpath(*last)


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    import torch

    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise no_record("expected the state of a network under 'model'", f"{type(state).__name__}")
    return {str(name).removeprefix("module."): tuple(value.shape) for name, value in state.items()}


def _broken(state: Any) -> tuple[str, ...]:
    return tuple(
        str(name).removeprefix("module.") for name, value in state.items() if not value.isfinite().all()
    )


def _numbers(values: Any, name: str, count: int) -> list[int]:
    found = list(values) if isinstance(values, list | tuple) else []
    if len(found) != count or not all(isinstance(value, int | np.integer) for value in found):
        raise no_record(f"expected {count} whole numbers as {name}", repr(values))
    return [int(value) for value in found]


def _check_goals(record: Record) -> None:
    """Refuse a record whose classes follow no rule that bdtune knows: they are what success is counted by."""
    test, train = record.test, record.train
    if not np.array_equal(test.labels, record.goals(test.true)):
        expected = "expected one target class for all triggered test images, or the next class for each"
        raise no_record(expected, f"the classes {', '.join(map(str, np.unique(test.labels)[:8]))}")
    strange = ~record.is_poison & (train.labels != train.true)
    if strange.any():
        expected = "expected changed training images to have the attack's class or their own"
        raise no_record(expected, f"{int(strange.sum())} of {len(strange)} with another")

"""The batches of CIFAR-10 and CIFAR-100 as their authors publish them, and other batches of that form.

They are pickles. The published ones are opened by torchvision, which compares their MD5 first; others by an
unpickler that makes plain values and NumPy arrays, and nothing that could run code.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np

from bdtune.effects import NoEffect
from bdtune.errors import DataError, Problem
from bdtune.plugins.dataset import Dataset
from bdtune.reading.files import torchvision_download
from bdtune.reading.images import Records

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bdtune.plugins.dataset import Counts, SplitName

PIXELS = (3, 32, 32)
LABELS = ("labels", "fine_labels")
HARMLESS = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}
"""Module and name of what makes NumPy's arrays and numbers, and bytes, in a pickle."""


class Cifar(Dataset):
    """Base of CIFAR-10 and CIFAR-100."""

    verify: Annotated[bool, NoEffect] = True
    """false: read batches of any size that are not the published ones; no code in them is run."""

    archive: ClassVar[str]
    """Torchvision's name of it."""

    def known_counts(self, split: SplitName) -> tuple[Counts, ...]:
        return super().known_counts(split) if self.verify else ()

    def records(self, split: SplitName, root: Path) -> Records | None:
        return cifar_records(self.archive, (root, root / self.parquet), split, verify=self.verify)

    def download(self, root: Path) -> None:
        torchvision_download(self.archive, root)


def cifar_records(name: str, bases: Sequence[Path], split: SplitName, *, verify: bool) -> Records | None:
    """Return the records of an archive that is unpacked under one of `bases`; None without one.

    `name` is torchvision's. Raises `DataError` where the archive is not the published one; without `verify`
    where a batch is not of its form.
    """
    import torchvision

    reader = getattr(torchvision.datasets, name)
    base = next((base for base in bases if (base / reader.base_folder).is_dir()), None)
    if base is None:
        return None
    folder = base / reader.base_folder
    batches = [name for name, _ in (reader.train_list if split == "train" else reader.test_list)]
    if not verify:
        return _unverified(folder, batches, reader.meta)
    try:
        data = reader(str(base), train=split == "train", download=False)
    except RuntimeError as error:
        hint = "Remove the folder and fetch it again with --download, or set dataset.verify to false"
        hint += " to read batches of any size that are not the published ones"
        raise DataError(
            Problem("dataset", f"expected {name}'s archive", str(error), str(folder), hint)
        ) from error
    files = tuple(folder / batch for batch in batches)
    return Records(np.asarray(data.targets, np.int64), tuple(data.classes), arrays=data.data, files=files)


def _unverified(folder: Path, batches: list[str], meta: dict[str, str]) -> Records:
    """Return what lies in the files of a split; of numbered ones there may be any number."""
    stem = batches[0].rstrip("0123456789")
    numbered = sorted(folder.glob(f"{stem}[0-9]*"), key=lambda file: (len(file.name), file.name))
    files = tuple(numbered) if len(batches) > 1 else (folder / batches[0],)
    if not files or not files[0].is_file():
        raise DataError(Problem("dataset", f"expected a file {batches[0]}", "none", str(folder)))
    parts = [_batch(file) for file in files]
    names = (
        _opened(folder / meta["filename"]).get(meta["key"]) if (folder / meta["filename"]).is_file() else ()
    )
    images = np.concatenate([images for images, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    return Records(labels, tuple(map(_text, names or ())), arrays=images, files=files)


def _batch(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [N, 32, 32, 3] and int64 [N] of one batch."""
    found = _opened(file)
    pixels = found.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels[:1].size != np.prod(PIXELS):
        expected = f"expected uint8 rows of {np.prod(PIXELS)} pixels under 'data'"
        got = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else repr(pixels)[:40]
        raise DataError(Problem("dataset", expected, got, str(file)))
    labels = _whole_numbers(next((found[name] for name in LABELS if name in found), None))
    if len(labels) != len(pixels):
        expected = f"expected {len(pixels)} whole numbers under '{LABELS[0]}' or '{LABELS[1]}'"
        raise DataError(Problem("dataset", expected, str(len(labels)), str(file)))
    images = pixels.reshape(-1, *PIXELS).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(labels, np.int64)


def _whole_numbers(values: Any) -> list[int]:
    """Return the values of a list or an array that are whole numbers."""
    found = values.tolist() if isinstance(values, np.ndarray) else values
    numbers = [int(v) for v in found if isinstance(v, int | np.integer)] if isinstance(found, list) else []
    return [number for number in numbers if abs(number) < 2**31]


class _Plain(pickle.Unpickler):
    """An unpickler of plain values and NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name}, which could run code")
        return super().find_class(module, name)


def _opened(file: Path) -> dict[str, Any]:
    """Return the dictionary in a batch; Python 2 wrote its words as bytes, others may have too."""
    expected = "expected a pickled dictionary of plain values and NumPy arrays"
    try:
        with file.open("rb") as stream:
            found = _Plain(stream, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ArithmeticError, LookupError) as error:
        raise DataError(Problem("dataset", expected, str(error) or "no end", str(file))) from error
    except (OSError, ValueError, TypeError, AttributeError, ImportError, MemoryError) as error:
        raise DataError(Problem("dataset", expected, str(error), str(file))) from error
    if not isinstance(found, dict):
        raise DataError(Problem("dataset", expected, type(found).__name__, str(file)))
    return {_text(key): value for key, value in found.items()}


def _text(word: Any) -> str:
    return word.decode("latin1") if isinstance(word, bytes) else str(word)

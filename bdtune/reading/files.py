"""Layouts on disk: Parquet folders and folders of classes, torchvision's downloads; and digests of files."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bdtune.errors import DataError, Problem
from bdtune.reading.images import Records

if TYPE_CHECKING:
    from collections.abc import Sequence

SplitName = Literal["train", "test"]
Stamp = tuple[tuple[str, int, int], ...]

SPLIT_FOLDERS: dict[SplitName, tuple[str, ...]] = {
    "train": ("train",),
    "test": ("test", "val", "validation", "valid"),
}
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp"}
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_WHOLE_UP_TO = 1 << 30
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 20


def stamp_of(files: Sequence[Path]) -> Stamp:
    """Return path, size and time of change of files or folders: equal stamps mean nothing changed."""
    stats = [(str(file), file.stat()) for file in files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def digest_files(files: Sequence[Path]) -> list[str]:
    """Return a digest for each file's bytes or folder's listing, computed once per (path, size, time)."""
    return [_digest(*entry) for entry in stamp_of(files)]


@lru_cache(maxsize=4096)
def _digest(name: str, size: int, _mtime_ns: int) -> str:
    """Digest a file's bytes, or the names and sizes in a folder.

    Of a file above 1 GiB only the size and 64 evenly spaced blocks of 1 MiB count: a change of a few
    bytes elsewhere in it goes unseen, reading 100 GB before each sweep would be worse.
    """
    path, sha = Path(name), hashlib.sha256()
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            sha.update(f"{entry.name}|{entry.stat().st_size}\n".encode())
        return sha.hexdigest()
    with path.open("rb") as file:
        if size <= _WHOLE_UP_TO:
            return hashlib.file_digest(file, "sha256").hexdigest()
        sha.update(str(size).encode())
        for sample in range(_SAMPLES):
            file.seek(sample * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            sha.update(file.read(_SAMPLE_BYTES))
    return sha.hexdigest()


def parquet_records(folder: Path, split: SplitName) -> Records | None:
    """Return the records of `<split>.parquet` or `<split>-*.parquet` in a folder; None when there is none.

    Columns as on the Hugging Face hub: `image` (struct with the encoded `bytes`) and `label` (integers);
    class names come from the schema metadata "huggingface". Raises `DataError` for other columns.
    """
    files = _parquet_files(folder, split)
    if not files:
        return None
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(files[0])
        image, label = _columns(files[0], schema)
        labels = np.concatenate(
            [pq.read_table(file, columns=[label])[label].to_numpy() for file in files]
        ).astype(np.int64, casting="same_kind")
    except (OSError, ValueError, TypeError) as error:  # pyarrow's own errors derive from these
        expected = "expected a Parquet file with encoded images and whole-number labels"
        raise DataError(Problem("dataset", expected, str(error), str(files[0]))) from error
    names = _class_names(schema, label)
    return Records(labels, names, parquet=tuple(files), image_column=image, files=tuple(files))


def _parquet_files(folder: Path, split: SplitName) -> list[Path]:
    for place in (folder, folder / "data"):
        for name in SPLIT_FOLDERS[split]:
            files = [place / f"{name}.parquet"] if (place / f"{name}.parquet").is_file() else []
            files = files or sorted(place.glob(f"{name}-*.parquet"))
            if files:
                return files
    return []


def _columns(file: Path, schema: Any) -> tuple[str, str]:
    image = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    label = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    if image is None or label is None:
        expected = "expected columns `image` (struct with `bytes`) and `label`"
        raise DataError(Problem("dataset", expected, ", ".join(schema.names), str(file)))
    return image, label


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return ()
    features = json.loads(text).get("info", {}).get("features", {})
    return tuple(features.get(label, {}).get("names") or ())


def inside(root: Path, relative: str) -> Path:
    """Return `root/relative`; raises `DataError` for a name that leads out of `root`."""
    folder = root / relative
    if not folder.resolve().is_relative_to(root.resolve()):
        expected = "expected a folder under data_root"
        raise DataError(Problem("dataset.path", expected, relative, hint="Set data_root to its parent"))
    return folder


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, sorted by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)


def split_folder(folder: Path, split: SplitName) -> Path | None:
    """Return `folder/train`, or the first of test, val, validation and valid; None when there is none."""
    return next((folder / name for name in SPLIT_FOLDERS[split] if (folder / name).is_dir()), None)


def class_folders(folders: Sequence[Path], class_names: Sequence[str]) -> Records:
    """Return the records of one folder per class, in the order of labels; an absent one counts as empty."""
    present = tuple(folder for folder in folders if folder.is_dir())
    found = [image_files(folder) if folder in present else [] for folder in folders]
    labels = np.repeat(np.arange(len(found)), [len(files) for files in found])
    paths = tuple(file for files in found for file in files)
    if not paths:
        where = str(folders[0].parent)
        raise DataError(Problem("dataset", "expected image files in the class folders", "none", where))
    return Records(labels, tuple(class_names), paths=paths, files=present)


def torchvision_download(name: str, root: Path, **split: Any) -> None:
    """Let torchvision fetch a data set into `root`; raises `DataError` when it cannot."""
    import torchvision

    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, name)(str(root), download=True, **split)
    except (OSError, RuntimeError) as error:
        problem = Problem("data_root", f"expected to fetch {name} with torchvision", str(error), str(root))
        raise DataError(problem) from error

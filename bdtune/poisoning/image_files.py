"""Images by sample id that were made elsewhere: an NPY or NPZ array, or a folder of pictures.

An array [N, H, W, C] alone is of all samples of a split, in the data set's order; in an NPZ file `ids` may
say of which. In a folder, and in folders in it, a picture's name is its sample's id: 17.png, or 00000017.png.
Pictures are PNG or JPEG, arrays uint8 or floats from 0 to 1. What enters keys is a digest of the content.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from bdtune.errors import ConfigError, Problem, problems_of
from bdtune.plugins.attack import quantised
from bdtune.poisoning.pattern_files import file_digest

if TYPE_CHECKING:
    from pathlib import Path

    Shape = tuple[int, int, int]

MOST_BYTES = 16 * 2**30
"""Of an array's file: 50,000 images of 224 pixels have 7 GiB as bytes."""
PICTURES = (".png", ".jpg", ".jpeg")
NAMES = ("images", "data")
"""What the images may be called in an NPZ file."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """A file or folder of images, of which only the shapes have been read."""

    path: Path
    knob: str  # that named it, for problems
    ids: np.ndarray | None  # int64 [n], ascending; None: every sample
    count: int
    shape: Shape
    files: tuple[Path, ...] = ()  # in the order of ids; none of an array
    rows: np.ndarray | None = field(default=None)  # int64 [n], where an NPZ file has each of the ids

    def known(self, total: int) -> np.ndarray:
        """Return the ids int64, ascending, of the samples that there are images of, of `total`."""
        return np.arange(total) if self.ids is None else self.ids

    def problems(self, total: int, split: str) -> list[Problem]:
        """Return why these are not images of a split of `total` samples."""
        last = self.count - 1 if self.ids is None else int(self.ids[-1])
        hint = f"Ids count the whole set: dataset.{split}_limit must be left out" if last >= total else ""
        if self.ids is None and self.count != total:
            expected = (
                f"expected an image of each of the {total} {split} samples, or an NPZ file with their ids"
            )
            return [Problem(self.knob, expected, f"{self.path} with {self.count}", hint=hint)]
        if last >= total:
            expected = f"expected ids below {total}, the number of {split} samples"
            return [Problem(self.knob, expected, f"{self.path} with {last}", hint=hint)]
        return []

    def read(self, ids: np.ndarray, quantise: Literal["round", "trunc"]) -> np.ndarray:
        """Return the images uint8 [n, H, W, C] of some ids, ascending; floats are quantised."""
        at = ids if self.ids is None else np.searchsorted(self.ids, ids)
        if self.files:
            pictures = [_picture(self.files[row], self.knob, self.shape) for row in at]
            return np.stack(pictures) if pictures else np.empty((0, *self.shape), np.uint8)
        found = _array(self.path, self.knob)[0][at if self.rows is None else self.rows[at]]
        if found.dtype == np.uint8:
            return np.array(found)
        if found.size and not (found.min() >= 0 and found.max() <= 1):
            expected = "expected floats from 0 to 1, or uint8"
            raise _wrong(self.knob, expected, f"{self.path}: {found.min():.3g} to {found.max():.3g}")
        return quantised(found, quantise)


def image_file(path: Path, knob: str) -> ImageFile:
    """Return what a file or folder has; raises `ConfigError` where that is no images by sample id."""
    return _indexed(path, knob, _stamp(path, knob))


def images_digest(path: Path, knob: str) -> str:
    """Return a digest of a file, or of all pictures of a folder with their ids; raises `ConfigError`."""
    if path.is_dir():
        return _folder_digest(path, knob, _stamp(path, knob))
    return file_digest(path, knob, MOST_BYTES)


def file_problems(path: Path | None, knob: str) -> list[Problem]:
    """Return what keeps images from being read."""
    return [] if path is None else problems_of(image_file, path, knob)


def shape_problems(path: Path | None, knob: str, image_shape: Shape) -> list[Problem]:
    """Return why images that can be read are of another shape than (H, W, C)."""
    if path is None or file_problems(path, knob):
        return []
    found = image_file(path, knob).shape
    if found == image_shape:
        return []
    expected = f"expected images of shape {list(image_shape)}, as the data set's are"
    return [Problem(knob, expected, f"{path} with {list(found)}")]


Stamp = tuple[int, ...]


def _stamp(path: Path, knob: str) -> Stamp:
    """Return what changes with a file, or with which files a folder has."""
    try:
        if not path.is_dir():
            stat = path.stat()
            return (stat.st_size, stat.st_mtime_ns)
        inner = sorted(each for each in path.iterdir() if each.is_dir())
        return tuple(each.stat().st_mtime_ns for each in [path, *inner])
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise _wrong(knob, "expected a readable file or folder", got) from error


@lru_cache(maxsize=16)
def _indexed(path: Path, knob: str, _stamp: Stamp) -> ImageFile:
    if path.is_dir():
        return _folder(path, knob)
    array, ids = _array(path, knob)
    kind = array.dtype
    if array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape or not _is_pixels(kind):
        expected = "expected images [N, H, W, C], uint8 or floats from 0 to 1"
        raise _wrong(knob, expected, f"{path} ({kind} {list(array.shape)})")
    count, height, width, channels = array.shape
    rows = None
    if ids is not None:
        _check_ids(ids, count, path, knob)
        rows = np.argsort(ids, kind="stable")
        ids = ids[rows].astype(np.int64)
    return ImageFile(path, knob, ids, count, (height, width, channels), rows=rows)


def _is_pixels(kind: np.dtype) -> bool:
    return kind == np.uint8 or np.issubdtype(kind, np.floating)


def _check_ids(ids: np.ndarray, count: int, path: Path, knob: str) -> None:
    good = np.issubdtype(ids.dtype, np.integer) and ids.shape == (count,)
    if not good or ids.min() < 0 or len(np.unique(ids)) < count:
        expected = f"expected ids, {count} different integers of at least 0, one for each image"
        raise _wrong(knob, expected, f"{path} with {ids.dtype} {list(ids.shape)}")


def _array(path: Path, knob: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return images [n, H, W, C], of an NPY file not yet read from disk, and their ids [n] if it has them."""
    file_digest(path, knob, MOST_BYTES)
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        with np.load(path, allow_pickle=False) as arrays:
            name = next((name for name in NAMES if name in arrays.files), None)
            if name is None:
                expected = f"expected an NPZ file with {' or '.join(NAMES)} in it"
                raise _wrong(knob, expected, f"{path} with {', '.join(arrays.files) or 'nothing'}")
            return arrays[name], arrays["ids"] if "ids" in arrays.files else None
    except (OSError, ValueError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        expected = "expected an .npy or .npz file of images, or a folder of pictures"
        raise _wrong(knob, expected, f"{path} ({error})") from error


def _folder(path: Path, knob: str) -> ImageFile:
    found: dict[int, Path] = {}
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in PICTURES:
            continue
        if not file.stem.isdecimal():
            raise _wrong(knob, "expected pictures that are named by sample id, as 17.png is", str(file))
        other = found.setdefault(int(file.stem), file)
        if other != file:
            raise _wrong(knob, "expected one picture of each sample", f"{other} and {file}")
    if not found:
        raise _wrong(knob, "expected a folder with pictures such as 17.png in it", str(path))
    ids = sorted(found)
    files = tuple(found[i] for i in ids)
    shape = _shape_of(files[0], knob)
    return ImageFile(path, knob, np.array(ids, np.int64), len(ids), shape, files)


def _shape_of(file: Path, knob: str) -> Shape:
    pixels = _opened(file, knob)
    return pixels.shape[0], pixels.shape[1], pixels.shape[2]


def _picture(file: Path, knob: str, shape: Shape) -> np.ndarray:
    pixels = _opened(file, knob)
    if pixels.shape != shape:
        expected = f"expected pictures of one shape, {list(shape)}"
        raise _wrong(knob, expected, f"{file} of {list(pixels.shape)}")
    return pixels


def _opened(file: Path, knob: str) -> np.ndarray:
    """Return a picture's pixels, uint8 [H, W, C]; grey ones have one channel."""
    try:
        with Image.open(file, formats=("PNG", "JPEG")) as opened:
            pixels = np.asarray(opened.convert("L" if opened.mode in ("L", "1") else "RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _wrong(knob, "expected a PNG or JPEG picture", f"{file} ({error})") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


@lru_cache(maxsize=16)
def _folder_digest(path: Path, knob: str, _stamp: Stamp) -> str:
    found = image_file(path, knob)
    assert found.ids is not None
    sha = hashlib.sha256()
    for i, file in zip(found.ids, found.files, strict=True):
        sha.update(f"{i} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()


def _wrong(knob: str, expected: str, got: str) -> ConfigError:
    return ConfigError(Problem(knob, expected, got))

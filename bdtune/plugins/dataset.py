"""The contract of data sets: where records lie, how they become resident uint8 arrays, what is checked.

A data set file fills `records`; everything else (limits, decoding, checks, fingerprint) is done here once.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Generic, TypeVar

import numpy as np
from pydantic import Field

from bdtune.effects import ModelOnly, TestOnly, TrainOnly, no_effect
from bdtune.engine.key import canonical_json, derive_seed, digest_of, key_of
from bdtune.errors import DataError, Problem
from bdtune.plugins.registry import Plugin
from bdtune.reading.files import SplitName, digest_files, parquet_records, stamp_of
from bdtune.reading.images import Records, ResizeFilter, Selection
from bdtune.reading.stream import FileStream

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageStream
    from bdtune.reading.files import Stamp

__all__ = ["Dataset", "Records", "Selection", "Split", "SplitName", "class_balanced"]

Cached = TypeVar("Cached")
Counts = int | tuple[int, ...]
"""Images of a split: all, or per class."""


@dataclass(frozen=True)
class Split:
    """Images and true labels; resident arrays are shared by all users and therefore read-only."""

    images: np.ndarray | ImageStream  # uint8 [N, H, W, 3]
    labels: np.ndarray  # int64 [N]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """Return what is in it in a line; a notebook prints it."""
        height, width, _ = self.images.shape[1:]
        return f"Split({len(self)} images of {height} x {width}, {len(np.unique(self.labels))} classes)"


class _Recent(Generic[Cached]):
    """The few values used last, dropped when their source files change."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[str, tuple[Stamp, Cached]] = OrderedDict()

    def get(self, key: str) -> Cached | None:
        stamp, value = self._entries.get(key, (None, None))
        try:
            fresh = stamp is not None and stamp == stamp_of([Path(name) for name, _, _ in stamp])
        except OSError:
            fresh = False
        return value if fresh else None

    def put(self, key: str, files: tuple[Path, ...], value: Cached) -> Cached:
        self._entries[key] = (stamp_of(files), value)
        self._entries.move_to_end(key)
        while len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return value


_records: _Recent[Records] = _Recent(4)
_splits: _Recent[Split] = _Recent(2)
_shapes: _Recent[tuple[int, int, int]] = _Recent(16)


class Dataset(Plugin):
    """Named train and test images with labels. A data set file fills the class constants and `records`."""

    train_limit: Annotated[int | None, TrainOnly] = Field(None, ge=1)
    """Use only so many training images: a fixed, class-balanced subset that grows with the limit."""
    test_limit: Annotated[int | None, TestOnly] = Field(None, ge=1)
    """The same for test images."""
    image_size: int | None = Field(None, ge=4, le=1024)
    """Side in pixels that all images are stretched to; none keeps the size they have."""
    resize: ResizeFilter = "bicubic"
    """Filter of that resizing (Pillow's, antialiased when it shrinks)."""
    mirrors: Annotated[bool, ModelOnly] = True
    """Whether an image's mirror image is of the same class: `augment: auto` flips only then."""
    standardise: bool = True
    """Whether networks see pixels less their mean, over their standard deviation; false: as in [0, 1]."""

    if TYPE_CHECKING:  # class constants of most data sets, knobs of the generic ones

        @property
        def num_classes(self) -> int:
            """Number of classes."""

        @property
        def mean(self) -> tuple[float, ...]:
            """Mean per channel of training pixels in [0, 1]."""

        @property
        def std(self) -> tuple[float, ...]:
            """Standard deviation per channel of training pixels in [0, 1]."""

    title: ClassVar[str] = ""
    """The data set's name in messages."""
    parquet: ClassVar[str] = ""
    """The folder under `data_root` whose Parquet files are taken before anything else, if it has any."""
    layouts: ClassVar[tuple[str, ...]] = ()
    """What else is accepted there, one sentence part each; without both no files are needed."""
    obtain: ClassVar[str] = ""
    """How to get it where `download` cannot."""
    counts: ClassVar[Mapping[SplitName, tuple[Counts, ...]]] = {}
    """Known numbers of images of a split; several where several editions are accepted."""

    def scale(self) -> dict[str, tuple[float, ...]]:
        """Return `mean` and `std` per channel, by which a network's input is made of pixels in [0, 1]."""
        if self.standardise:
            return {"mean": self.mean, "std": self.std}
        return {"mean": (0.0,) * len(self.mean), "std": (1.0,) * len(self.std)}

    @abstractmethod
    def records(self, split: SplitName, root: Path) -> Records | None:
        """Return where the images of a split lie under `root`; None when they are not there."""

    def known_counts(self, split: SplitName) -> tuple[Counts, ...]:
        """Return the numbers of images, or of each class, that a split may have; empty when any will do."""
        return self.counts.get(split, ())

    def accepted(self) -> tuple[str, ...]:
        """Return the layouts that are accepted, for messages."""
        parquet = f"{self.parquet}/train.parquet with {self.parquet}/test.parquet"
        return (parquet, *self.layouts) if self.parquet else self.layouts

    def load(self, split: SplitName, root: Path | None = None) -> Split:
        """Return a split's images, uint8 [N, H, W, 3], and labels, int64 [N].

        Raises `DataError` with everything that is wrong. The last two splits are kept in memory.
        """
        key = self._cache_key(split, root, limited=True)
        kept = _splits.get(key)
        if kept is not None:
            return kept
        selection = self.selection(split, root)
        loaded = self.split(selection, selection.read_all())
        return _splits.put(key, selection.records.files, loaded)

    def split(self, selection: Selection, images: np.ndarray) -> Split:
        """Return the split of a selection whose images, uint8 [N, H, W, 3], were read by any executor."""
        if images.dtype != np.uint8 or images.shape[0] != len(selection) or images.shape[3:] != (3,):
            got = f"{images.dtype} {list(images.shape)}"
            raise DataError(Problem("dataset", f"expected uint8 [{len(selection)}, H, W, 3]", got))
        labels = selection.labels
        images.flags.writeable = labels.flags.writeable = False
        return Split(images, labels, selection.records.class_names)

    def stream(self, split: SplitName, root: Path | None = None) -> Split:
        """Return a split whose images are read window by window, in process; raises `DataError`."""
        selection = self.selection(split, root)
        return Split(FileStream(selection), selection.labels, selection.records.class_names)

    def labels(self, split: SplitName, root: Path | None = None) -> np.ndarray:
        """Return the labels of a split, int64 [N], without decoding an image; raises `DataError`."""
        return self.selection(split, root).labels

    def selection(self, split: SplitName, root: Path | None = None) -> Selection:
        """Return the checked rows of a split, without their pixels; raises `DataError`."""
        records = self._records(split, root)
        problems = self._label_problems(split, records)
        limit = self.train_limit if split == "train" else self.test_limit
        total = len(records.labels)
        if limit is not None and limit > total:
            problems.append(Problem(f"dataset.{split}_limit", f"expected at most {total}", str(limit)))
        if problems:
            raise DataError(problems)
        rows = np.arange(total) if limit is None else class_balanced(records.labels, limit, self.num_classes)
        return Selection(records, rows, self.image_size, self.resize)

    def image_shape(self, root: Path | None = None) -> tuple[int, int, int]:
        """Return (H, W, C) of the training images, decoding at most the first; raises `DataError`."""
        if self.image_size is not None:
            return self.image_size, self.image_size, 3
        key = self._cache_key("train", root, limited=False)
        kept = _shapes.get(key)
        if kept is not None:
            return kept
        selection = self.selection("train", root)
        _, height, width, channels = selection.read(np.arange(1)).shape
        return _shapes.put(key, selection.records.files, (height, width, channels))

    def check(self, root: Path | None = None) -> list[Problem]:
        """Return what is missing or wrong in both splits, without loading images."""
        problems: dict[Problem, None] = {}
        splits: tuple[SplitName, ...] = ("train", "test")
        for split in splits:
            try:
                self.selection(split, root)
            except DataError as error:
                problems.update(dict.fromkeys(error.problems))
                if error.problems[0].path == "data_root":  # nothing is there: once is enough
                    break
        if not problems:
            names = [self._records(split, root).class_names for split in splits]
            if all(names) and names[0] != names[1]:
                expected = "expected the same class names, in the same order, for train and test"
                problems[Problem("dataset", expected, f"{names[0][:3]}... and {names[1][:3]}...")] = None
        return list(problems)

    def fingerprint(self, root: Path | None = None, split: SplitName | None = None) -> str:
        """Return 16 hex digits that change with the source files and with the knobs.

        Covers the bytes of Parquet files and archives, and of folders the names and sizes of their files.
        With `split`, only that split's files and limit count. Raises `DataError` when there are no files.
        """
        splits: tuple[SplitName, ...] = (split,) if split else ("train", "test")
        parts = []
        for name in splits:
            records = self._records(name, root)
            if records.files:
                content = digest_files(records.files)
            else:
                assert records.arrays is not None
                content = [digest_of({"images": records.arrays, "labels": records.labels}, None)]
            parts.append([name, self.identity(name), content])
        return key_of(parts)

    def download(self, root: Path) -> None:
        """Fetch the data set into `root`; raises `DataError` that says how to get it where that cannot be."""
        if not self.accepted():
            return
        expected = f"expected to be given {self.title}, which cannot be fetched automatically"
        raise DataError(Problem("data_root", expected, where=str(root), hint=self.obtain))

    @classmethod
    def can_download(cls) -> bool:
        """Return whether `download` fetches this data set."""
        return cls.download is not Dataset.download

    def _records(self, split: SplitName, root: Path | None) -> Records:
        key = self._cache_key(split, root, limited=False)
        kept = _records.get(key)
        if kept is not None:
            return kept
        folder = self._folder(root)
        found = parquet_records(folder / self.parquet, split) if self.parquet else None
        records = found or self.records(split, folder)
        if records is None:
            raise DataError(self._missing(f"no {split} split in any of these forms", folder))
        return _records.put(key, records.files, records)

    def _folder(self, root: Path | None) -> Path:
        if not self.accepted():
            return Path()
        named = root or os.environ.get("BDTUNE_DATA")
        if not named:
            raise DataError(self._missing("neither data_root nor BDTUNE_DATA", None))
        if not Path(named).is_dir():
            raise DataError(self._missing("no such folder", Path(named)))
        return Path(named).absolute()

    def _missing(self, got: str, folder: Path | None) -> Problem:
        hint = "Set data_root (or the variable BDTUNE_DATA) to the folder that holds it"
        hint += ", or fetch it with --download" if self.can_download() else ""
        hint += f". {self.obtain}" if self.obtain else ""
        expected = f"expected {self.title or self.plugin_name()} as {' or '.join(self.accepted())}"
        return Problem("data_root", expected, got, str(folder or ""), hint)

    def _cache_key(self, split: SplitName, root: Path | None, *, limited: bool) -> str:
        place = str(root or os.environ.get("BDTUNE_DATA", ""))
        checks = {name: getattr(self, name) for name in sorted(no_effect(type(self)))}
        identity = self.identity(split if limited else "unlimited")
        return canonical_json([type(self).__module__, place, split, identity, checks])

    def _label_problems(self, split: SplitName, records: Records) -> list[Problem]:
        where = str(records.files[0].parent) if records.files else ""
        path, classes = f"dataset.{split}", self.num_classes
        low, high = int(records.labels.min(initial=0)), int(records.labels.max(initial=0))
        if low < 0 or high >= classes:
            return [Problem(path, f"expected labels from 0 to {classes - 1}", f"{low} to {high}", where)]
        problems = []
        if records.class_names and len(records.class_names) != classes:
            got = str(len(records.class_names))
            problems.append(Problem(path, f"expected {classes} class names", got, where))
        counts = np.bincount(records.labels, minlength=classes)
        if not counts.all():
            got = "none of " + ", ".join(map(str, np.flatnonzero(counts == 0)[:10]))
            problems.append(Problem(path, f"expected images of all {classes} classes", got, where))
        known = self.known_counts(split)
        if known and not any(_agrees(counts, edition) for edition in known):
            sizes = " or ".join(f"{np.sum(edition)} images" for edition in known)
            got = f"{counts.sum()} images, per class {counts.min()} to {counts.max()}"
            hint = "An incomplete or another edition; read it with dataset=parquet or imagefolder"
            problems.append(Problem(path, f"expected {sizes} with the known class sizes", got, where, hint))
        return problems


def _agrees(counts: np.ndarray, edition: Counts) -> bool:
    return int(counts.sum()) == edition if isinstance(edition, int) else tuple(counts) == edition


def class_balanced(labels: np.ndarray, limit: int, num_classes: int) -> np.ndarray:
    """Return `limit` positions of int64 [N] labels, ascending: as many per class as there are, or equal.

    Fixed by the labels alone; a larger limit gives a superset. Needs limit <= N.
    """
    sizes = np.bincount(labels, minlength=num_classes)
    totals = np.minimum(sizes[:, None], np.arange(sizes.max() + 1)).sum(0)
    equal = int(np.searchsorted(totals, limit, side="right")) - 1  # the largest share that all can have
    shares = np.minimum(sizes, equal)
    shares[np.flatnonzero(sizes > equal)[: limit - totals[equal]]] += 1
    chosen = []
    for label, share in enumerate(shares):
        order = np.random.default_rng(derive_seed(0, "subset", label))
        chosen.append(order.permutation(np.flatnonzero(labels == label))[:share])
    return np.sort(np.concatenate(chosen))

"""What every data set promises, whether its files are there or not."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.errors import DataError
from bdtune.plugins import registry
from bdtune.plugins.dataset import Records
from bdtune.testing.described import check_each, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bdtune.plugins.dataset import Dataset
    from bdtune.reading.files import SplitName


def sample_dataset(name: str, **knobs: Any) -> Dataset:
    """Return a data set by name, its required knobs set to their examples."""
    cls = registry.load("datasets", name)
    required = {k: (info.examples or [])[0] for k, info in cls.model_fields.items() if info.is_required()}
    dataset: Dataset = cls(**required, **knobs)
    return dataset


@contextmanager
def _no_data_root() -> Iterator[None]:
    before = os.environ.pop("BDTUNE_DATA", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["BDTUNE_DATA"] = before


def check_public_facts(name: str) -> None:
    """Classes, mean, spread, title and counts are known without files."""
    dataset = sample_dataset(name)
    lacking = [fact for fact in ("num_classes", "mean", "std") if not hasattr(dataset, fact)]
    assert not lacking, f"expected the class to have {', '.join(lacking)}"
    assert dataset.num_classes >= 2, f"expected at least two classes, got num_classes = {dataset.num_classes}"
    for fact in ("mean", "std"):
        values = getattr(dataset, fact)
        in_range = len(values) == 3 and all(0 < value < 1 for value in values)
        assert in_range, f"expected `{fact}` to be three numbers between 0 and 1, one a channel, got {values}"
    assert dataset.title or not dataset.accepted(), "a data set with files needs a title"
    for editions in dataset.counts.values():
        assert all(isinstance(edition, int) or len(edition) == dataset.num_classes for edition in editions)


def check_missing_files(name: str) -> None:
    """Where files are missing, the error says which are expected, where, and how to get them."""
    dataset = sample_dataset(name)
    with tempfile.TemporaryDirectory() as folder, _no_data_root():
        for place in (None, Path(folder) / "nowhere", Path(folder)):
            problems = dataset.check(place)
            if not dataset.accepted():
                assert not problems, str(problems[0])
                continue
            (problem,) = problems
            for action in (dataset.load, dataset.labels, dataset.stream):
                refused(partial(action, "train", place), DataError, "data_root")
            refused(partial(dataset.fingerprint, place), DataError, "data_root")
            text = str(problem)
            assert "BDTUNE_DATA" in text
            assert all(layout in text for layout in dataset.accepted())
            assert ("--download" in text) == dataset.can_download()
            assert place is None or str(place) in text


def check_records(name: str) -> None:
    """Where the data are there, `records` gives labels and images of both splits that can be read."""
    dataset = sample_dataset(name)
    if dataset.accepted() and dataset.check():
        return
    root = Path(os.environ.get("BDTUNE_DATA", ""))
    splits: tuple[SplitName, ...] = ("train", "test")
    for split in splits:
        one, two = (_formed(split, dataset.records(split, root)) for _ in range(2))
        same = np.array_equal(one.labels, two.labels) and np.array_equal(one.arrays, two.arrays)  # type: ignore[arg-type]
        assert same, f"expected the same {split} records each time: draw what is random with a fixed seed"
        images = dataset.selection(split).read(np.arange(1))
        assert images.dtype == np.uint8, f"expected {split} images uint8, got {images.dtype}"


def _formed(split: str, records: object) -> Records:
    """Return what `records` returned, its arrays checked."""
    got = type(records).__name__
    assert isinstance(records, Records), f"expected Records of the {split} split, got {got}"
    count = len(records.labels)
    assert _form(records.labels) == f"int64 [{count}]", (
        f"expected {split} labels int64 [N], got {_form(records.labels)}"
    )
    if records.arrays is not None:
        shape = records.arrays.shape
        fits = len(shape) == 4 and (shape[0], shape[3]) == (count, 3) and records.arrays.dtype == np.uint8
        assert fits, f"expected {split} images uint8 [{count}, H, W, 3], got {_form(records.arrays)}"
    return records


def _form(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def check_download(name: str) -> None:
    """What cannot be fetched says how to get it."""
    dataset = sample_dataset(name)
    with tempfile.TemporaryDirectory() as folder:
        if not dataset.accepted():
            dataset.download(Path(folder))
        elif not dataset.can_download():
            refused(partial(dataset.download, Path(folder)), DataError, dataset.title)


def check_wrong_knobs(name: str) -> None:
    """Wrong settings are refused."""
    for wrong in ({"train_limit": 0}, {"image_size": -1}, {"resize": "sharp"}, {"unknown": 1}):
        refused(partial(sample_dataset, name, **wrong), ValueError, next(iter(wrong)))


CHECKS: tuple[Callable[[str], None], ...] = (
    check_public_facts,
    check_records,
    check_missing_files,
    check_download,
    check_wrong_knobs,
)


def check_dataset(name: str) -> None:
    """Check a data set by name; raises `AssertionError` for the first broken promise."""
    check_each("datasets", name, CHECKS)

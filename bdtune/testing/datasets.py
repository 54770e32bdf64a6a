"""What every data set promises, whether its files are there or not."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdtune.errors import DataError
from bdtune.plugins import registry
from bdtune.testing.described import check_described, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bdtune.plugins.dataset import Dataset


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
    assert dataset.num_classes >= 2
    assert len(dataset.mean) == len(dataset.std) == 3
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))
    assert dataset.title or not dataset.accepted(), "a data set with files needs a title"
    for editions in dataset.counts.values():
        assert all(isinstance(edition, int) or len(edition) == dataset.num_classes for edition in editions)


def check_missing_files(name: str) -> None:
    """Where files are missing, the error says which are expected, where, and how to get them."""
    dataset = sample_dataset(name)
    with tempfile.TemporaryDirectory() as folder, _no_data_root():
        for place in (None, Path(folder) / "nowhere", Path(folder)):
            if not dataset.accepted():
                assert dataset.check() == []
                continue
            (problem,) = dataset.check(place)
            for action in (dataset.load, dataset.labels, dataset.stream):
                refused(partial(action, "train", place), DataError, "data_root")
            refused(partial(dataset.fingerprint, place), DataError, "data_root")
            text = str(problem)
            assert "BDTUNE_DATA" in text
            assert all(layout in text for layout in dataset.accepted())
            assert ("--download" in text) == dataset.can_download()
            assert place is None or str(place) in text


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
    check_missing_files,
    check_download,
    check_wrong_knobs,
)


def check_dataset(name: str) -> None:
    """Check a data set by name; raises `AssertionError` for the first broken promise."""
    check_described("datasets", name)
    for check in CHECKS:
        check(name)

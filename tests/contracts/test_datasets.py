"""Every data set passes these by being there."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from bdtune.errors import DataError
from bdtune.plugins import registry
from bdtune.plugins.dataset import Dataset, Split

NAMES = registry.names("datasets")


def make(name, **knobs):
    """Return the data set, its required knobs set to their examples."""
    cls = registry.load("datasets", name)
    required = {field: info.examples[0] for field, info in cls.model_fields.items() if info.is_required()}
    return cls(**required, **knobs)


every_dataset = pytest.mark.parametrize("name", NAMES)


@every_dataset
def test_says_in_one_sentence_what_it_is_and_where_it_comes_from(name):
    about = registry.describe("datasets", name)
    assert about.summary.endswith(".")
    assert 20 < len(about.summary) < 140
    assert len(about.source) > 30


@every_dataset
def test_states_its_departures(name):
    import sys

    text = sys.modules[registry.load("datasets", name).__module__].__doc__
    assert "Departures: " in text
    assert "licence" in text or "CC BY" in text or "research" in text


@every_dataset
def test_every_knob_is_described(name):
    import ast
    import inspect

    for cls in registry.load("datasets", name).__mro__:
        if not (issubclass(cls, Dataset) and cls.__module__.startswith("bdtune.datasets")):
            continue
        body = ast.parse(inspect.getsource(cls)).body[0].body
        for line, following in pairwise(body):
            if isinstance(line, ast.AnnAssign) and line.target.id in cls.model_fields:
                assert isinstance(following, ast.Expr), f"{cls.__name__}.{line.target.id} has no docstring"


@every_dataset
def test_public_facts_are_known_without_files(name):
    dataset = make(name)
    assert dataset.num_classes >= 2
    assert len(dataset.mean) == len(dataset.std) == 3
    assert all(0 < value < 1 for value in (*dataset.mean, *dataset.std))
    assert dataset.title
    for editions in dataset.counts.values():
        assert all(isinstance(edition, int) or len(edition) == dataset.num_classes for edition in editions)


@pytest.mark.parametrize("root", ["unset", "absent", "empty"])
@every_dataset
def test_missing_files_give_an_error_that_helps(name, root, tmp_path, monkeypatch):
    monkeypatch.delenv("BDTUNE_DATA", raising=False)
    dataset = make(name)
    if not dataset.accepted():
        assert dataset.check() == []
        return
    place = {"unset": None, "absent": tmp_path / "nowhere", "empty": tmp_path}[root]
    (problem,) = dataset.check(place)
    for action in (dataset.load, dataset.labels, dataset.stream):
        with pytest.raises(DataError) as error:
            action("train", place)
        assert error.value.problems == (problem,)
    with pytest.raises(DataError):
        dataset.fingerprint(place)
    text = str(problem)
    assert "data_root" in text
    assert "BDTUNE_DATA" in text
    assert all(layout in text for layout in dataset.accepted())
    assert ("--download" in text) == dataset.can_download()
    assert place is None or str(place) in text


@every_dataset
def test_what_cannot_be_fetched_says_how_to_get_it(name, tmp_path):
    dataset = make(name)
    if not dataset.accepted():
        assert dataset.download(tmp_path) is None
    elif not dataset.can_download():
        with pytest.raises(DataError) as error:
            dataset.download(tmp_path)
        assert dataset.title in str(error.value)


@every_dataset
def test_wrong_knobs_are_refused(name):
    for wrong in ({"train_limit": 0}, {"image_size": -1}, {"resize": "sharp"}, {"unknown": 1}):
        with pytest.raises(ValueError):
            make(name, **wrong)


def test_the_built_in_one_loads_without_files():
    dataset = make("digits", train_limit=100)
    split = dataset.load("train")
    assert isinstance(split, Split)
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(split.labels).tolist() == [10] * 10
    assert dataset.fingerprint() == make("digits", train_limit=100).fingerprint()
    assert dataset.fingerprint() != make("digits", train_limit=101).fingerprint()
    assert dataset.fingerprint(split="test") == make("digits").fingerprint(split="test")

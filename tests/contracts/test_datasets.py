"""Every data set passes these by being there."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bdtune.plugins import registry
from bdtune.plugins.dataset import Split
from bdtune.testing.datasets import CHECKS, sample_dataset
from bdtune.testing.described import check_described

NAMES = registry.names("datasets")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_every_data_set_keeps_its_promises(name, check):
    check(name)


@pytest.mark.parametrize("name", NAMES)
def test_says_in_one_sentence_what_it_is_and_where_it_comes_from(name):
    check_described("datasets", name)
    about = registry.describe("datasets", name)
    assert about.summary.endswith(".")
    assert 20 < len(about.summary) < 140
    assert len(about.source) > 30
    text = sys.modules[registry.load("datasets", name).__module__].__doc__
    assert "Departures: " in text
    assert "licence" in text or "CC BY" in text or "research" in text


def test_the_built_in_one_loads_without_files():
    dataset = sample_dataset("digits", train_limit=100)
    split = dataset.load("train")
    assert isinstance(split, Split)
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int64)
    assert np.bincount(split.labels).tolist() == [10] * 10
    assert dataset.fingerprint() == sample_dataset("digits", train_limit=100).fingerprint()
    assert dataset.fingerprint() != sample_dataset("digits", train_limit=101).fingerprint()
    assert dataset.fingerprint(split="test") == sample_dataset("digits").fingerprint(split="test")

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdtune.errors import DataError
from bdtune.plugins import registry
from bdtune.plugins.dataset import class_balanced
from tests.datasets.layouts import small_parquet, write_parquet


def parquet(root, **knobs):
    return registry.load("datasets", "parquet")(**{**small_parquet(root), **knobs})


def messages(error):
    return [str(problem) for problem in error.value.problems]


labels_and_limit = st.lists(st.integers(0, 4), min_size=1, max_size=80).flatmap(
    lambda labels: st.tuples(st.just(np.array(labels)), st.integers(1, len(labels)))
)


@given(labels_and_limit)
def test_a_subset_has_the_exact_count_in_order_and_as_balanced_as_possible(case):
    labels, limit = case
    ids = class_balanced(labels, limit, 5)
    assert len(ids) == limit
    assert (np.diff(ids) > 0).all()
    taken, there = np.bincount(labels[ids], minlength=5), np.bincount(labels, minlength=5)
    short = taken < there  # classes with images left over
    assert taken[short].min(initial=99) >= taken.max() - 1


@given(labels_and_limit)
def test_a_larger_subset_contains_the_smaller_one(case):
    labels, limit = case
    smaller = class_balanced(labels, max(1, limit // 2), 5)
    assert set(smaller) <= set(class_balanced(labels, limit, 5))


def test_limits_choose_the_same_rows_whatever_the_other_split_does(tmp_path):
    knobs = small_parquet(tmp_path)
    whole = registry.load("datasets", "parquet")(**knobs).load("train", tmp_path)
    first = registry.load("datasets", "parquet")(**knobs, train_limit=10).load("train", tmp_path)
    other = registry.load("datasets", "parquet")(**knobs, train_limit=10, test_limit=5).load(
        "train", tmp_path
    )
    assert np.bincount(first.labels).tolist() == [4, 3, 3]
    assert np.array_equal(first.images, other.images)
    rows = class_balanced(whole.labels, 10, 3)
    assert np.array_equal(first.images, whole.images[rows])


def test_labels_equal_those_of_the_loaded_split(tmp_path):
    dataset = parquet(tmp_path, train_limit=31)
    assert np.array_equal(dataset.labels("train", tmp_path), dataset.load("train", tmp_path).labels)


def test_a_split_is_kept_until_its_file_changes(tmp_path):
    dataset = parquet(tmp_path)
    first = dataset.load("train", tmp_path)
    assert dataset.load("train", tmp_path) is first
    write_parquet(tmp_path / "small" / "train.parquet", np.arange(60) % 3, first=500)
    assert not np.array_equal(dataset.load("train", tmp_path).images, first.images)


def test_only_two_splits_are_kept(tmp_path):
    first = parquet(tmp_path).load("train", tmp_path)
    for limit in (10, 11):
        parquet_again = registry.load("datasets", "parquet")(path="small", num_classes=3, train_limit=limit)
        parquet_again.load("train", tmp_path)
    again = registry.load("datasets", "parquet")(path="small", num_classes=3).load("train", tmp_path)
    assert again is not first


def test_shared_arrays_cannot_be_written_to(tmp_path):
    split = parquet(tmp_path).load("train", tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        split.images[0] = 0


def test_the_variable_is_used_when_no_root_is_given(tmp_path, monkeypatch):
    dataset = parquet(tmp_path)
    monkeypatch.setenv("BDTUNE_DATA", str(tmp_path))
    assert len(dataset.load("test")) == 20


def test_fingerprint_follows_content_not_place_or_time(tmp_path):
    here, there = parquet(tmp_path / "a"), parquet(tmp_path / "b")
    before = here.fingerprint(tmp_path / "a")
    assert before == there.fingerprint(tmp_path / "b")
    file = tmp_path / "a" / "small" / "train.parquet"
    os.utime(file, (1, 1))
    assert here.fingerprint(tmp_path / "a") == before
    write_parquet(file, np.arange(60) % 3, first=500)
    assert here.fingerprint(tmp_path / "a") != before


def test_fingerprint_of_a_split_ignores_the_other_split(tmp_path):
    knobs = small_parquet(tmp_path)
    plain = registry.load("datasets", "parquet")(**knobs)
    limited = registry.load("datasets", "parquet")(**knobs, test_limit=5)
    assert plain.fingerprint(tmp_path, "train") == limited.fingerprint(tmp_path, "train")
    assert plain.fingerprint(tmp_path, "test") != limited.fingerprint(tmp_path, "test")
    write_parquet(tmp_path / "small" / "test.parquet", np.arange(20) % 3, first=2000)
    assert plain.fingerprint(tmp_path, "train") == limited.fingerprint(tmp_path, "train")


@pytest.mark.parametrize("knob", [{"image_size": 16}, {"resize": "nearest"}, {"train_limit": 9}])
def test_fingerprint_changes_with_every_knob(tmp_path, knob):
    knobs = small_parquet(tmp_path)
    cls = registry.load("datasets", "parquet")
    assert cls(**knobs).fingerprint(tmp_path) != cls(**knobs, **knob).fingerprint(tmp_path)


def test_every_problem_of_both_splits_is_reported_at_once(tmp_path):
    small_parquet(tmp_path, classes=3)
    dataset = registry.load("datasets", "parquet")(path="small", num_classes=4, train_limit=99, test_limit=99)
    found = [str(problem) for problem in dataset.check(tmp_path)]
    assert len(found) == 4
    assert "dataset.train: expected images of all 4 classes, got none of 3" in found[0]
    assert "dataset.train_limit: expected at most 60, got 99" in found[1]


def test_labels_out_of_range_are_refused(tmp_path):
    small_parquet(tmp_path, classes=3)
    with pytest.raises(DataError) as error:
        registry.load("datasets", "parquet")(path="small", num_classes=2).load("train", tmp_path)
    assert "labels from 0 to 1, got 0 to 2" in messages(error)[0]


def test_class_names_must_agree_between_the_splits(tmp_path):
    write_parquet(tmp_path / "x" / "train.parquet", [0, 1], names=["cat", "dog"])
    write_parquet(tmp_path / "x" / "test.parquet", [0, 1], names=["dog", "cat"])
    (problem,) = registry.load("datasets", "parquet")(path="x", num_classes=2).check(tmp_path)
    assert "the same class names" in str(problem)


def test_wrong_class_sizes_of_a_known_data_set_are_refused(tmp_path):
    write_parquet(tmp_path / "cifar10" / "train.parquet", np.arange(50) % 10)
    with pytest.raises(DataError) as error:
        registry.load("datasets", "cifar10")().load("train", tmp_path)
    assert "50000 images with the known class sizes, got 50 images" in messages(error)[0]


def test_a_missing_split_says_what_is_accepted_and_what_to_do(tmp_path):
    write_parquet(tmp_path / "small" / "train.parquet", [0, 1, 2])
    with pytest.raises(DataError) as error:
        registry.load("datasets", "parquet")(path="small", num_classes=3).load("test", tmp_path)
    (text,) = messages(error)
    assert str(tmp_path) in text
    assert "small/test.parquet" in text
    assert "no test split" in text
    assert "BDTUNE_DATA" in text

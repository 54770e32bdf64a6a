"""What a task of the pipeline is sent: a reference to the job, which lies in the object store once."""

from __future__ import annotations

import pickle

import pytest
import ray

from bdtune.cluster import pipeline
from bdtune.plugins import registry
from bdtune.poisoning.stream import poisoned_stream
from tests.datasets.layouts import small_parquet
from tests.trained import equipped_for, merged, quick

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
REFERENCE = "0123456789abcdef"
"""Stands for a reference, which is a number of 28 bytes and who owns it."""
SMALL = 10_000


class Recorded:
    """Stands for Ray Data, and keeps the function that is mapped instead of calling it."""

    def __init__(self):
        self.mapped = []

    def from_items(self, _items, **_):
        return self

    def map_batches(self, function, **_):
        self.mapped.append(function)
        return self

    def iter_batches(self, **_):
        return iter(())


@pytest.fixture
def recorded(monkeypatch):
    """Ray Data's stand-in, and what is put into the object store."""
    stand_in, stored = Recorded(), []
    monkeypatch.setattr(pipeline, "require_cpu", lambda: None)
    monkeypatch.setattr(ray.data, "from_items", stand_in.from_items)
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or REFERENCE)
    return stand_in, stored


def test_a_task_is_small_however_much_its_attack_has_trained(recorded, tmp_path):
    stand_in, stored = recorded
    dataset = registry.load("datasets", "parquet")(
        **small_parquet(tmp_path, n_train=400, n_test=90), image_size=16
    )
    cls = registry.load("attacks", "issba")
    attack = equipped_for(cls(**merged({"rate": 0.2}, quick(cls))), dataset, tmp_path)
    plan = attack.plan(dataset.labels("train", tmp_path), seed=0, num_classes=dataset.num_classes)
    stream = poisoned_stream(pipeline.stream(dataset, "train", tmp_path), attack, plan)
    for seed in (None, 1, 2):
        assert list(stream._parts(3, seed)) == []
    assert len(pickle.dumps(attack)) > 10 * SMALL
    assert [type(job).__name__ for job in stored] == ["_Work"]  # once for all epochs
    assert stored[0].stamps is attack
    assert len(stand_in.mapped) == 3
    for task in stand_in.mapped:
        parcel = ray.cloudpickle.dumps(task)
        assert len(parcel) < SMALL
        assert pickle.loads(parcel) == task

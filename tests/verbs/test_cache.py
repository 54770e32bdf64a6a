"""`bdtune cache`: what goes, what stays, and why two keys differ."""

from __future__ import annotations

import numpy as np
import pytest

from bdtune.engine.manifest import Cost
from bdtune.engine.stage import Artefact
from bdtune.engine.store import ARRAYS, Store
from bdtune.errors import UserError
from bdtune.verbs import cache


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def publish(store, key, *, seconds, size=1000, kind="train", lr=0.1):
    artefact = Artefact({"a": np.zeros(size, np.uint8)} if size else {}, {"acc": 0.5})
    preimage = {
        "stage": "toy",
        "version": 1,
        "knobs": {"lr": lr, "epochs": 2},
        "inputs": {"data": {"key": "x"}},
    }
    return store.publish(key * 16, kind, preimage, artefact, cost=Cost(seconds, 0))


def keys(store):
    return "".join(sorted(manifest.key[0] for manifest in Store(store.root).entries()))


def test_gc_removes_what_is_cheap_per_byte_first(store):
    publish(store, "a", seconds=50)
    publish(store, "b", seconds=60, size=100_000)  # dearer than "a", yet cheaper per byte
    publish(store, "c", seconds=500)
    publish(store, "d", seconds=0, size=0)  # an evaluation: metrics only
    done = cache.collect(store, 3000)
    assert keys(store) == "acd"
    assert (done.entries, done.kept_in_use) == (1, 0)
    assert done.left <= 3000
    assert cache.collect(store, 1500).entries == 1
    assert keys(store) == "cd"
    assert cache.collect(store, 1500).entries == 0


def test_gc_takes_derived_results_last(store):
    publish(store, "a", seconds=0.001, size=100, kind="derive")
    publish(store, "b", seconds=1000)
    cache.collect(store, 500)
    assert keys(store) == "a"
    cache.collect(store, 0)
    assert keys(store) == ""


def test_gc_leaves_what_a_running_sweep_uses_or_computes(store):
    for key in "abc":
        publish(store, key, seconds=1)
    sweep = Store(store.root)
    with sweep.pins.held(), sweep.leases.try_hold("b" * 16):
        sweep.pins.add("a" * 16)
        done = cache.collect(store, 0)
        assert done.kept_in_use == 1
        # The lease is of this very process, so only the pin shows that somebody else is at it.
        assert "a" in keys(store)
    assert cache.collect(store, 0).left == 0
    assert keys(store) == ""


def test_a_dry_run_removes_nothing_and_says_the_same(store):
    for key in "abc":
        publish(store, key, seconds=1)
    said = cache.collect(store, 1500, dry_run=True)
    assert keys(store) == "abc"
    assert cache.collect(store, 1500) == said


def test_why_says_what_differs(store):
    publish(store, "a", seconds=1, lr=0.1)
    publish(store, "b", seconds=1, lr=0.2)
    assert cache.why(store, "a", "b" * 16) == [cache.Difference("knobs.lr", 0.1, 0.2)]
    assert cache.why(store, "a", "a") == []


def test_why_refuses_keys_that_are_unknown_or_stand_for_several(store):
    publish(store, "a", seconds=1)
    store.publish("ab" * 8, "train", {"stage": "t", "version": 1, "knobs": {}}, Artefact(), cost=Cost(1, 0))
    with pytest.raises(UserError, match="'f'"):
        cache.why(store, "f", "ab")
    with pytest.raises(UserError, match="begins 2 keys"):
        cache.why(store, "a", "ab")


def test_verify_counts_and_quarantines(store, caplog):
    for key in "abc":
        publish(store, key, seconds=1)
    file = store.folder("b" * 16) / ARRAYS
    file.write_bytes(file.read_bytes()[:-1])
    (store.root / "objects" / "dd" / ("d" * 16)).mkdir(parents=True)  # torn: there is no manifest
    assert cache.verify(Store(store.root)) == (2, ["b" * 16, "d" * 16])
    assert keys(store) == "ac"
    assert len(list((store.root / "quarantine").iterdir())) == 2
    assert cache.verify(Store(store.root)) == (2, [])
    assert "it will be computed again" in caplog.text


def test_the_listing_is_in_order_of_age(store):
    first = publish(store, "b", seconds=1.23456)
    second = publish(store, "a", seconds=2)
    rows = cache.listing(store)
    assert [set(row) for row in rows] == [{"key", "stage", "bytes", "seconds", "created"}] * 2
    assert {row["key"] for row in rows} == {first.key, second.key}
    assert sorted(row["created"] for row in rows) == [row["created"] for row in rows]
    assert {row["seconds"] for row in rows} == {1.235, 2}

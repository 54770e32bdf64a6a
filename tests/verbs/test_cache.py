"""`bdtune cache`: what goes, what stays, and why two keys differ."""

from __future__ import annotations

import numpy as np
import pytest

from bdtune.engine.manifest import Cost
from bdtune.engine.stage import Artefact
from bdtune.engine.store import ARRAYS, Store
from bdtune.errors import UserError
from bdtune.report import files
from bdtune.trials.results import SweepResult, TrialResult
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
    assert cache.why(store, "a", "b" * 16) == [cache.Difference("toy", "knobs.lr", 0.1, 0.2)]
    assert cache.why(store, "a", "a") == []


def chained(store, key, name, parents, **knobs):
    """Publish an entry whose inputs are others."""
    preimage = {"stage": f"d.{name}", "version": 1, "knobs": knobs, "inputs": parents}
    artefact = Artefact({"a": np.full(4, len(str(knobs)), np.uint8)}, {"knobs": str(knobs)})
    return store.publish(key * 16, "train", preimage, artefact, cost=Cost(1, 0))


def test_why_follows_inputs_to_the_knob_at_the_root(store):
    clean = chained(store, "a", "detect", {}, beta=0.6)
    other = chained(store, "b", "detect", {}, beta=1.5)
    left = chained(store, "c", "split", {"detect": {"key": clean.key}})
    right = chained(store, "d", "split", {"detect": {"key": other.key}})
    first = chained(store, "e", "retrain", {"split": {"digest": clean.digest}, "last": {"key": left.key}})
    second = chained(store, "f", "retrain", {"split": {"digest": other.digest}, "last": {"key": right.key}})
    assert cache.why(store, first.key, second.key) == [cache.Difference("detect", "knobs.beta", 0.6, 1.5)]


def test_why_compares_the_most_alike_of_entries_with_equal_results(store):
    """Settings that come to one result are not told apart by its digest."""
    same = [chained(store, key, "split", {}, beta=beta) for key, beta in (("a", 0.6), ("b", 0.7), ("c", 1.5))]
    assert same[0].digest != same[2].digest
    preimage = {"stage": "d.all", "version": 1, "knobs": {}, "inputs": {}}
    artefact = Artefact({"a": np.full(4, len(str({"beta": 0.6})), np.uint8)}, {"knobs": str({"beta": 0.6})})
    assert store.publish("d" * 16, "derive", preimage, artefact, cost=Cost(1, 0)).digest == same[0].digest
    first = chained(store, "e", "retrain", {"split": {"digest": same[0].digest}})
    second = chained(store, "f", "retrain", {"split": {"digest": same[2].digest}})
    assert cache.why(store, first.key, second.key) == [cache.Difference("split", "knobs.beta", 0.6, 1.5)]


def test_why_says_a_seed_once_and_results_of_different_stages_in_one_line(store):
    clean = chained(store, "a", "detect", {"data": {"seed": 0}})
    other = chained(store, "b", "detect", {"data": {"seed": 1}})
    first = chained(store, "c", "retrain", {"data": {"seed": 0}, "last": {"key": clean.key}})
    second = chained(store, "d", "retrain", {"data": {"seed": 1}, "last": {"key": other.key}})
    assert cache.why(store, first.key, second.key) == [cache.Difference("detect", "inputs.data.seed", 0, 1)]
    assert cache.why(store, clean.key, second.key) == [cache.Difference("", "stage", "detect", "retrain")]


def test_why_takes_the_ids_of_trials(store):
    publish(store, "a", seconds=1)
    params = {"defense": "gssd", "defense.beta_nd": 0.6, "seed": 0}
    trials = (
        TrialResult("3f" * 8, "done", params),
        TrialResult("4e" * 8, "done", {**params, "defense.beta_nd": 1.5}),
    )
    files.write(store.root.parent / "sweeps" / "s", SweepResult("s", trials), figure=False)
    found = cache.why(store, "3f", "4e4e", store.root.parent)
    assert found == [cache.Difference("trial", "defense.beta_nd", 0.6, 1.5)]
    with pytest.raises(UserError, match="two keys, or the ids of two trials"):
        cache.why(store, "3f", "a", store.root.parent)


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
    file = store.place.folder("b" * 16) / ARRAYS
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
    assert [set(row) for row in rows] == [{"key", "stage", "bytes", "dropped", "seconds", "created"}] * 2
    assert {row["key"] for row in rows} == {first.key, second.key}
    assert sorted(row["created"] for row in rows) == [row["created"] for row in rows]
    assert {row["seconds"] for row in rows} == {1.235, 2}

from __future__ import annotations

import json
import multiprocessing

import numpy as np
import pytest

from bdtune.engine.manifest import MANIFEST, Cost, Manifest
from bdtune.engine.stage import Artefact
from bdtune.engine.store import ARRAYS, Store
from bdtune.errors import Diverged, StoreError

KEY = "0123456789abcdef"
PREIMAGE = {"stage": "toy", "version": 1, "knobs": {}}
ARTEFACT = Artefact(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3), "empty": np.zeros((0, 2))},
    {"acc": 0.5},
    ({"epoch": 1, "loss": 2.5},),
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def publish(store, key=KEY, artefact=ARTEFACT):
    return store.publish(key, "train", PREIMAGE, artefact, cost=Cost(1.5, 100))


def test_what_is_published_is_read_back(store):
    manifest = publish(store)
    for reader in (store, Store(store.root)):
        artefact = reader.open(KEY)
        assert artefact.info == ARTEFACT.info
        assert artefact.curve == ARTEFACT.curve
        for name, array in ARTEFACT.arrays.items():
            assert artefact.arrays[name].dtype == array.dtype
            assert artefact.arrays[name].shape == array.shape
            assert np.array_equal(artefact.arrays[name], array)
        assert reader.manifest(KEY) == manifest
    assert list(store.entries()) == [manifest]
    assert list((store.root / "tmp").glob("0*")) == []


def test_missing_keys_are_missing(store):
    assert not store.has(KEY)
    assert store.open(KEY) is None


def test_the_first_of_two_results_stands(store):
    publish(store)
    publish(Store(store.root), artefact=Artefact({"a": np.zeros(1)}))
    assert Store(store.root).open(KEY).info == {"acc": 0.5}


def test_arrays_of_any_memory_order_survive(store):
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))[:, ::2]
    publish(store, artefact=Artefact({"a": array}))
    assert np.array_equal(Store(store.root).open(KEY).arrays["a"], array)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-5])


def _flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x10
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, lambda file: file.unlink()])
@pytest.mark.parametrize("name", [ARRAYS, MANIFEST])
def test_a_damaged_entry_is_noticed_and_quarantined(store, name, damage, caplog):
    publish(store)
    damage(store.place.folder(KEY) / name)
    reader = Store(store.root)
    assert reader.open(KEY) is None
    publish(reader)
    assert len(list((store.root / "quarantine").iterdir())) == 1
    assert "will be computed again" in caplog.text
    assert Store(store.root).open(KEY) is not None


def test_a_truncated_file_is_noticed_even_by_the_process_that_read_it_before(store):
    publish(store)
    assert store.open(KEY) is not None
    _truncate(store.place.folder(KEY) / ARRAYS)
    assert store.open(KEY) is None


def test_a_failed_write_is_an_error(store):
    (store.root / "objects" / KEY[:2]).write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        publish(store)
    assert list((store.root / "tmp").glob("0*")) == []


def test_failures_are_remembered_until_success(store):
    store.record_failure(KEY, "toy", RuntimeError("first"))
    failure = store.record_failure(KEY, "toy", Diverged("loss is nan"))
    assert (failure.status, failure.attempts) == ("diverged", 2)
    assert "loss is nan" in Store(store.root).failure(KEY).error
    publish(store)
    assert store.failure(KEY) is None


def test_checkpoints_are_replaced_read_and_cleared(store):
    slot = store.checkpoint(KEY, interval_s=0)
    assert slot.load() is None
    assert slot.due()
    slot.save({"w": np.arange(3)}, {"epoch": 1})
    slot.save({"w": np.arange(4)}, {"epoch": 2})
    arrays, info = store.checkpoint(KEY).load()
    assert np.array_equal(arrays["w"], np.arange(4))
    assert info == {"epoch": 2}
    slot.path.write_bytes(b"torn")
    assert slot.load() is None
    slot.save({"w": np.arange(4)}, {"epoch": 2})
    publish(store)
    assert slot.load() is None


def test_manifest_of_another_format_is_refused():
    manifest = Manifest(KEY, "toy", "train", PREIMAGE, "d", {}, {}, Cost(1.0, 1))
    assert Manifest.from_json(manifest.to_json()) == manifest
    body = json.loads(manifest.to_json())
    for change in ({"format": 2}, {"digest": "e"}, {"stage": None}):
        with pytest.raises(ValueError):
            Manifest.from_json(json.dumps({**body, **change}).encode())


def _hold(root, key, ready, go):
    with Store(root).leases.try_hold(key) as mine:
        ready.put(mine)
        go.wait(30)


def test_one_process_holds_a_lease_and_its_death_frees_it(store):
    context = multiprocessing.get_context("spawn")
    ready, go = context.Queue(), context.Event()
    holder = context.Process(target=_hold, args=(store.root, KEY, ready, go))
    holder.start()
    try:
        assert ready.get(timeout=30)
        assert store.leases.held_by_other(KEY)
        with store.leases.try_hold(KEY) as mine:
            assert not mine
    finally:
        holder.kill()
        holder.join()
    assert not store.leases.held_by_other(KEY)
    with store.leases.try_hold(KEY) as mine:
        assert mine
        assert not store.leases.held_by_other(KEY)
    assert list((store.root / "leases").iterdir()) == []


def test_a_lease_nobody_touches_goes_stale(store, monkeypatch):
    monkeypatch.setattr("bdtune.engine.lease.STALE_S", -1.0)
    with store.leases.try_hold(KEY), Store(store.root).leases.try_hold(KEY) as mine:
        assert mine


def test_what_one_killed_right_after_publishing_left_is_cleared(store):
    for key in ("done", "open"):
        store.checkpoint(key).save({"x": np.zeros(1)}, {})
        store.record_failure(key, "a_stage", RuntimeError("an attempt before"))
    kept = set(store.root.rglob("open.*"))
    left = {path: path.read_bytes() for path in store.root.rglob("done.*")}
    publish(store, "done")
    for path, content in left.items():
        path.write_bytes(content)
    store.clear_leftovers()
    assert {*store.root.rglob("open.*"), *store.root.rglob("done.*")} == kept
    assert len(kept) == len(left) == 2


def test_a_lease_that_a_power_failure_tore_is_nobodys(store):
    lease = store.root / "leases" / KEY
    lease.write_text("")
    assert not store.leases.held_by_other(KEY)
    store.clear_leftovers()
    assert not lease.exists()
    lease.write_text('{"host"')
    with store.leases.try_hold(KEY) as mine:
        assert mine

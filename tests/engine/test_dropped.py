"""Arrays that were dropped from a store: what stays, who computes them again, what a kill leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from bdtune.engine import folder_place, object_place
from bdtune.engine.demand import missing
from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.manifest import MANIFEST
from bdtune.engine.node import Node
from bdtune.engine.objects import Bucket
from bdtune.engine.plan import make_plan
from bdtune.engine.ready_queue import Job, ReadyQueue
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import ARRAYS, CURVE, Store
from bdtune.errors import OtherBitsError
from bdtune.verbs import cache
from tests.doubles import CPU
from tests.engine.test_store_places import ARTEFACT, KEY, publish
from tests.engine.toys import Train, chain, joined

OF_PROCESSES = ["folder", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))]
"""Places that outlive a process."""
BY = "sweep 's' (weights_gb=0)"


@pytest.fixture
def log(tmp_path, monkeypatch):
    """What toy stages have computed: one line for each."""
    file = tmp_path / "computed"
    monkeypatch.setenv("BDTUNE_TOY_LOG", str(file))

    def take():
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines

    return take


def equal(one, two):
    return one.keys() == two.keys() and all(one[name].tobytes() == two[name].tobytes() for name in one)


def test_all_but_the_arrays_stays_and_they_come_back_bit_for_bit(stand):
    store = stand.store()
    before = publish(store)
    bytes_ = before.files[ARRAYS].bytes
    assert store.drop(KEY, BY) == bytes_
    assert store.drop(KEY, BY) == 0, "there is nothing left to drop"
    for reader in (store, stand.store()):
        found = reader.manifest(KEY)
        assert replace(found, files=before.files, dropped=None) == before
        assert (found.dropped.by, found.dropped.files) == (BY, {ARRAYS: before.files[ARRAYS]})
        assert (found.size, found.stored) == (before.size, before.size - bytes_)
        assert reader.has(KEY)
        assert not reader.is_whole(KEY)
        assert reader.open(KEY) is None
        assert reader.curve(KEY) == list(ARTEFACT.curve)
        assert reader.is_sound(KEY)
    assert not stand.left()
    stand.store().bring_back(KEY, ARTEFACT)
    for reader in (store, stand.store()):
        assert reader.is_whole(KEY)
        assert equal(reader.open(KEY).arrays, dict(ARTEFACT.arrays))
        assert reader.manifest(KEY) == before
    assert not stand.graves()
    assert not stand.left()


def test_other_bits_are_refused_in_words_and_nothing_changes(stand):
    store = stand.store()
    publish(store)
    store.drop(KEY, BY)
    other = replace(ARTEFACT, arrays={**ARTEFACT.arrays, "n": np.array(4)})
    with pytest.raises(OtherBitsError, match=r"weights_gb=0.*bdtune cache remove 0123456789abcdef"):
        stand.store().bring_back(KEY, other)
    assert not stand.store().is_whole(KEY)
    assert stand.store().is_sound(KEY)


def test_a_reader_of_before_takes_what_was_dropped_for_no_damage(stand, caplog):
    reader, again = stand.store(), stand.store()
    publish(stand.store())
    assert reader.has(KEY)
    assert again.has(KEY)
    stand.store().drop(KEY, BY)
    assert reader.open(KEY) is None
    stand.store().bring_back(KEY, ARTEFACT)
    assert equal(again.open(KEY).arrays, dict(ARTEFACT.arrays)), "though it knew another attempt"
    assert not stand.graves()
    assert "damaged" not in caplog.text


def test_who_computes_keeps_others_from_dropping(stand):
    publish(stand.store())
    with stand.store().leases.try_hold(KEY) as mine:
        assert mine
        assert stand.store().drop(KEY, BY) == 0
    assert stand.store().is_whole(KEY)


def test_two_that_drop_at_once_free_it_once(stand):
    publish(stand.store())
    stores, freed = [stand.store(), stand.store()], []
    threads = [threading.Thread(target=lambda each=each: freed.append(each.drop(KEY, BY))) for each in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert min(freed) == 0
    assert sum(map(bool, freed)) == 1
    assert stand.store().is_sound(KEY)
    assert not stand.store().is_whole(KEY)


def test_what_another_store_has_brings_it_back(stand, tmp_path):
    other = Store(tmp_path / "other")
    publish(other)
    publish(stand.store())
    stand.store().drop(KEY, BY)
    dropped = stand.store().contents(KEY)
    assert set(dropped) == {CURVE, MANIFEST}
    stand.store().adopt(other.contents(KEY))
    assert stand.store().is_whole(KEY)
    stand.store().adopt(dropped)
    assert stand.store().is_whole(KEY), "one that lacks its arrays takes nothing away"
    third = Store(tmp_path / "third")
    third.adopt(dropped)
    assert third.manifest(KEY).dropped.by == BY
    assert third.curve(KEY) == list(ARTEFACT.curve)


def test_a_damaged_rest_is_quarantined_as_ever(stand):
    publish(stand.store())
    stand.store().drop(KEY, BY)
    stand.damage(KEY, CURVE, lambda old: old[:-3])
    assert cache.verify(stand.store()) == (0, [KEY])
    assert len(stand.graves()) == 1


def test_verify_ls_and_gc_count_what_lies_there(stand):
    before = publish(stand.store())
    stand.store().drop(KEY, BY)
    assert cache.verify(stand.store()) == (1, [])
    [row] = cache.listing(stand.store())
    left = before.files[CURVE].bytes
    assert (row["bytes"], row["dropped"]) == (left, before.size - left)
    assert cache.collect(stand.store(), left).entries == 0
    assert cache.collect(stand.store(), 0).entries == 1
    assert not stand.store().has(KEY)


def test_what_brings_it_back_is_news(stand):
    publish(stand.store())
    stand.store().drop(KEY, BY)
    reader = stand.store()
    reader.news()
    assert not reader.is_whole(KEY)
    stand.store().bring_back(KEY, ARTEFACT)
    reader.catch_up()
    assert reader.news() == {KEY}
    assert reader.is_whole(KEY)
    assert stand.store().news() == set(), "but not of long ago"


def test_a_rerun_computes_nothing_and_a_new_reader_the_stage_alone(stand, log):
    executor = Executor(stand.store(), None, made_for="s/one")
    node = chain()
    value = executor.compute(node)
    before, keys = stand.store().manifest(executor.resolver.key(node)), log()
    assert len(keys) == 3
    stand.store().drop(before.key, BY)
    for _ in Executor(stand.store(), None).walk([chain()]):
        pass
    assert log() == []
    plan = make_plan([[chain()]], 0, Resolver(stand.store()))
    assert all(count.cached == count.unique for count in plan.stages.values())

    later = Node(Train(plus=2.0), {"from": chain()}, 0, CPU)
    seen = Executor(stand.store(), None, made_for="t/two")
    asked = [(step.recipe, key) for step, key in missing(seen, later)]
    assert asked == [(node.recipe, before.key), (later.recipe, seen.resolver.key(later))]
    planned = make_plan([[later]], 0, Resolver(stand.store())).stages
    [count] = [each for name, each in planned.items() if "train" in name]
    assert (count.unique, count.cached) == (3, 1)
    for _ in seen.walk([later]):
        pass
    assert log() == ["toy_train 0.0", "toy_train 2.0"]
    after = stand.store()
    assert equal(after.open(before.key).arrays, value.arrays)
    assert after.manifest(before.key) == before, "who paid for it, and what it cost, stay"
    assert not stand.left()


def test_a_chain_of_what_was_dropped_comes_back_from_its_first_stage(stand, log):
    executor = Executor(stand.store(), None)
    value = executor.compute(chain())
    for manifest in list(stand.store().entries()):
        if manifest.kind == "train":
            stand.store().drop(manifest.key, BY)
    log()
    assert equal(Executor(stand.store(), None).compute(chain()).arrays, value.arrays)
    assert log() == ["toy_train 0.0", "toy_train 0.0"]


def test_of_two_trials_that_read_it_one_brings_it_back_and_the_other_waits(stand):
    executor = Executor(stand.store(), None)
    executor.compute(chain())
    key = executor.resolver.key(chain())
    stand.store().drop(key, BY)
    queue = ReadyQueue(Executor(stand.store(), None))
    for plus in (2.0, 3.0):
        queue.add(Job(str(plus), [Node(Train(plus=plus), {"from": chain()}, 0, CPU)]))
    first = queue.take()
    assert key in first.claims
    assert queue.take() is None
    assert queue.held_back == 1
    Executor(stand.store(), None).compute(chain())
    queue.executor.store.catch_up()
    second = queue.take()
    assert {first.id, second.id} == {"2.0", "3.0"}
    assert key not in second.claims


def test_other_bits_fail_the_stage_and_are_remembered(stand, monkeypatch):
    executor = Executor(stand.store(), None)
    executor.compute(chain())
    key = executor.resolver.key(chain())
    stand.store().drop(key, BY)
    monkeypatch.setattr(np.random, "default_rng", lambda *_: np.random.Generator(np.random.Philox(key=1)))
    with pytest.raises(StageFailed, match="other bits"):
        Executor(stand.store(), None).compute(chain())
    assert "cache remove" in stand.store().failure(key).error
    assert not stand.store().is_whole(key)
    cache.remove(stand.store(), key)
    Executor(stand.store(), None).compute(chain())
    assert stand.store().is_whole(key), "it counts as never computed"


def test_what_could_be_computed_with_others_comes_back_alone(stand, log):
    executor = Executor(stand.store(), None)
    value = executor.compute(joined())
    middle = next(step for step in joined().walk() if step.name == "toy_joined")
    key = executor.resolver.key(middle)
    stand.store().drop(key, BY)
    log()
    beside = Node(Train(plus=3.0), {"x": joined()}, 0, CPU)
    events = list(Executor(stand.store(), None).walk([beside]))
    assert not [event for event in events if event.node.recipe == middle.recipe], "nothing reads it"
    later = Node(Train(plus=4.0), {"x": middle}, 0, CPU)
    events = list(Executor(stand.store(), None).walk([later]))
    assert "joinable" not in [event.what for event in events]
    assert stand.store().is_whole(key)
    assert equal(Executor(stand.store(), None).compute(joined()).arrays, value.arrays)


KILLED = """
import os, signal, sys
from bdtune.engine import folder_place
from bdtune.engine.objects import Bucket
from bdtune.engine.store import Store
from tests.engine.test_store_places import ARTEFACT
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
folder_place.sync_folder = Bucket.delete = killed
store = Store(sys.argv[1])
store.drop(sys.argv[2], "x") if sys.argv[3] == "drop" else store.bring_back(sys.argv[2], ARTEFACT)
"""
"""The process dies when the manifest is replaced, before the old file is removed."""


@pytest.mark.parametrize("what", ["drop", "bring back"])
@pytest.mark.parametrize("stand", OF_PROCESSES, indirect=True)
def test_a_kill_between_manifest_and_file_loses_nothing(stand, what):
    publish(stand.store())
    if what == "bring back":
        stand.store().drop(KEY, BY)
    command = [sys.executable, "-c", KILLED, str(stand.root), KEY, what]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    stand.store().clear_leftovers()
    assert stand.store().is_sound(KEY)
    assert stand.store().is_whole(KEY) == (what == "bring back")
    stand.store().bring_back(KEY, ARTEFACT)
    assert equal(stand.store().open(KEY).arrays, dict(ARTEFACT.arrays))
    assert stand.store().drop(KEY, BY)
    assert stand.store().is_sound(KEY)
    assert not stand.graves()


def test_gc_removes_the_file_of_a_removal_that_broke_off(stand, monkeypatch):
    publish(stand.store())
    place = stand.place
    with monkeypatch.context() as patch:
        if isinstance(stand.root, Path):
            patch.setattr(Path, "unlink", lambda *_, **__: None)
        else:
            patch.setattr(Bucket, "delete", lambda *_: None)
        assert stand.store().drop(KEY, BY)
    stand.store().clear_leftovers()
    assert place.clear_orphans() == 0, "it may just be written"
    with monkeypatch.context() as patch:
        for module in (folder_place, object_place):
            patch.setattr(module, "ORPHANED", timedelta(0))
        time.sleep(1.1)  # a server counts whole seconds
        assert place.clear_orphans() == 1
        assert place.clear_orphans() == 0
    assert stand.store().is_sound(KEY)
    assert not stand.store().is_whole(KEY)

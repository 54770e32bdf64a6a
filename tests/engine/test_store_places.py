"""What holds of a store wherever it lies: in a folder, in memory, in a bucket on a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.manifest import MANIFEST, Cost
from bdtune.engine.plan import Costs, make_plan
from bdtune.engine.resolve import Resolver
from bdtune.engine.stage import Artefact
from bdtune.engine.store import ARRAYS, CURVE, Store
from bdtune.errors import Diverged
from tests.engine.toys import chain

KEY = "0123456789abcdef"
PREIMAGE = {"stage": "toy", "version": 1, "knobs": {}}
ARTEFACT = Artefact(
    {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3), "empty": np.zeros((0, 2))},
    {"acc": 0.5},
    ({"epoch": 1, "loss": 2.5},),
)


def publish(store, key=KEY, artefact=ARTEFACT):
    return store.publish(key, "train", PREIMAGE, artefact, cost=Cost(1.5, 100))


def test_what_is_published_is_read_back_by_everybody(stand):
    store = stand.store()
    assert not store.has(KEY)
    assert store.open(KEY) is None
    manifest = publish(store)
    for reader in (store, stand.store()):
        artefact = reader.open(KEY)
        assert artefact.info == ARTEFACT.info
        assert artefact.curve == ARTEFACT.curve
        for name, array in ARTEFACT.arrays.items():
            assert (artefact.arrays[name].dtype, artefact.arrays[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(artefact.arrays[name], array)
        assert reader.manifest(KEY) == manifest
        assert reader.curve(KEY) == list(ARTEFACT.curve)
        assert list(reader.entries()) == [manifest]
        assert reader.every_key() == [KEY]
    assert not stand.left()


def test_every_place_holds_the_same_bytes(stand, tmp_path):
    other = Store(tmp_path / "other")
    assert publish(stand.store()).files == publish(other).files
    [here] = stand.store().files(KEY, [ARRAYS], tmp_path / "kept")
    [there] = other.files(KEY, [ARRAYS], tmp_path)
    assert here.read_bytes() == there.read_bytes()
    assert here.name == ARRAYS


def test_the_first_of_two_results_stands(stand):
    publish(stand.store())
    publish(stand.store(), artefact=Artefact({"a": np.zeros(1)}))
    assert stand.store().open(KEY).info == {"acc": 0.5}
    assert not stand.left()


@pytest.mark.parametrize("name", [ARRAYS, CURVE, MANIFEST])
@pytest.mark.parametrize(
    "change",
    [
        lambda old: old[:-5],
        lambda old: old[:-3] + bytes([old[-3] ^ 16]) + old[-2:],
        lambda old: bytes([old[0] ^ 16]) + old[1:],
        lambda old: None,
    ],
    ids=["cut", "bit", "first bit", "gone"],
)
def test_a_damaged_entry_is_moved_away_once_and_computed_again(stand, name, change, caplog):
    publish(stand.store())
    stand.damage(KEY, name, change)
    readers = [stand.store(), stand.store()]
    assert [reader.open(KEY) for reader in readers] == [None, None]
    assert not any(reader.has(KEY) for reader in readers)
    publish(readers[0])
    if (name, change(b"123456")) == (MANIFEST, None) and isinstance(stand.root, str):
        assert not stand.graves(), "an object that is missing cannot be moved"
    else:
        assert len(stand.graves()) == 1
        assert caplog.text.count("will be computed again") == 1
    assert stand.store().open(KEY) is not None


def test_what_was_found_damaged_is_not_taken_for_what_replaced_it(stand):
    """Two find it damaged; when the second moves it away, the first has computed it again."""
    publish(stand.store())
    first, second = stand.store(), stand.store()
    assert second.has(KEY)
    assert first.has(KEY)
    stand.damage(KEY, ARRAYS, lambda old: None)
    assert first.open(KEY) is None
    publish(first)
    second.place.catch_up()
    second.open(KEY)
    assert stand.store().open(KEY) is not None
    assert len(stand.graves()) <= 2


def test_a_reader_learns_what_anybody_publishes_and_a_key_is_absent_until_then(stand):
    reader, writer, before = stand.store(), stand.store(), "a" * 16
    publish(writer, before)
    assert reader.news() == set(), "what was there before is no news"
    assert reader.has(before)
    assert not reader.has(KEY)
    publish(writer)
    assert not reader.has(KEY)
    reader.catch_up()
    assert reader.news() == {KEY}
    assert reader.has(KEY)
    publish(reader, "b" * 16)
    assert reader.news() == {"b" * 16}, "its own, too"
    assert reader.news() == set()


def test_what_is_adopted_or_computed_again_is_news(stand, tmp_path):
    reader, writer, other = stand.store(), stand.store(), Store(tmp_path / "other")
    reader.news()
    publish(other)
    assert not reader.has(KEY)
    writer.adopt(other.contents(KEY))
    reader.catch_up()
    assert reader.news() == {KEY}
    stand.damage(KEY, ARRAYS, lambda old: None)
    assert reader.open(KEY) is None
    assert not reader.has(KEY)
    publish(stand.store())
    reader.catch_up()
    assert reader.news() == {KEY}
    assert reader.open(KEY) is not None


def test_who_holds_the_lease_finds_a_result_whose_line_was_lost(stand, monkeypatch):
    reader, writer = stand.store(), stand.store()
    reader.news()
    assert not reader.has(KEY)
    monkeypatch.setattr(writer.place, "note", lambda *_: None)
    publish(writer)
    reader.catch_up()
    assert reader.news() == set()
    with reader.leases.try_hold(KEY):
        assert not reader.has(KEY)
        reader.look_again(KEY)
        assert reader.has(KEY)


def test_an_entry_is_removed_whole_and_may_come_again(stand):
    publish(stand.store())
    stand.store().remove(KEY)
    stand.store().remove(KEY)
    reader = stand.store()
    assert not reader.has(KEY)
    assert reader.every_key() == []
    assert not stand.left()
    publish(reader)
    assert stand.store().open(KEY) is not None


def test_failures_are_remembered_until_success(stand):
    store = stand.store()
    store.record_failure(KEY, "toy", RuntimeError("first"))
    failure = stand.store().record_failure(KEY, "toy", Diverged("loss is nan"))
    assert (failure.status, failure.attempts) == ("diverged", 2)
    assert "loss is nan" in stand.store().failure(KEY).error
    stand.store().forget_failure(KEY)
    again = stand.store()
    assert again.failure(KEY) is None
    again.record_failure(KEY, "toy", RuntimeError("once more"))
    publish(again)
    assert stand.store().failure(KEY) is None


def test_checkpoints_are_replaced_read_and_cleared(stand):
    slot = stand.store().checkpoint(KEY, interval_s=0)
    assert slot.load() is None
    assert slot.due()
    slot.save({"w": np.arange(3)}, {"epoch": 1})
    slot.save({"w": np.asfortranarray(np.arange(4.0).reshape(2, 2))}, {"epoch": 2})
    slot.close(keep=True)
    arrays, info = stand.store().checkpoint(KEY).load()
    assert np.array_equal(arrays["w"], np.arange(4.0).reshape(2, 2))
    assert info == {"epoch": 2}
    publish(stand.store())
    assert slot.load() is None


def test_one_holds_a_lease_until_it_is_given_back(stand):
    first, second = stand.store().leases, stand.store().leases
    with first.try_hold(KEY) as mine:
        assert mine
        assert not first.held_by_other(KEY)
        assert second.held_by_other(KEY)
        with second.try_hold(KEY) as also:
            assert not also
        second.clear_stale()
        assert second.held_by_other(KEY)
    assert not second.held_by_other(KEY)
    with second.try_hold(KEY) as mine:
        assert mine
    assert not stand.left()


HOLDER = """
import sys, time
from bdtune.engine.store import Store
with Store(sys.argv[1]).leases.try_hold(sys.argv[2]) as mine:
    print(mine, flush=True)
    time.sleep(600)
"""


def spawn(stand, script, *words, **environment):
    command = [sys.executable, "-c", script, str(stand.root), *words]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "stand", ["folder", pytest.param("s3", marks=pytest.mark.xdist_group("s3"))], indirect=True
)
class TestProcesses:
    """Several processes at one store."""

    def test_the_death_of_a_holder_frees_its_lease(self, stand):
        with spawn(stand, HOLDER, KEY) as holder:
            assert holder.stdout.readline() == "True\n"
            leases = stand.store().leases
            assert leases.held_by_other(KEY)
            holder.kill()
            holder.wait()
        assert not leases.held_by_other(KEY)
        stand.store().clear_leftovers()
        assert not stand.left()
        with leases.try_hold(KEY) as mine:
            assert mine

    def test_a_killed_stage_goes_on_from_its_checkpoint_with_the_same_result(self, stand, tmp_path):
        node = chain(epochs=20, seconds=0.1)
        store = stand.store()
        key = Resolver(store).key(next(step for step in node.walk() if not step.parents))
        script = WALK.format("epochs=20, seconds=0.1")
        with spawn(stand, script) as process:
            while store.checkpoint(key).load() is None or store.checkpoint(key).load()[1]["epoch"] < 3:
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
        store.catch_up()
        assert not store.has(key)
        executor = Executor(store, None)
        ticks = [event.tick.epoch for event in executor.walk([node]) if event.what == "tick"]
        assert ticks[0] > 3
        undisturbed = Executor(Store(tmp_path / "other"), None).compute(node)
        assert np.array_equal(executor.compute(node).arrays["value"], undisturbed.arrays["value"])
        assert not stand.left()

    def test_three_at_one_store_compute_each_stage_once(self, stand, tmp_path):
        log = tmp_path / "log"
        script = WALK.format("epochs=20, seconds=0.02")
        processes = [spawn(stand, script, BDTUNE_TOY_LOG=str(log)) for _ in range(3)]
        assert [process.wait(timeout=200) for process in processes] == [0, 0, 0]
        for process in processes:
            process.stdout.close()
        assert sorted(log.read_text().splitlines()) == ["toy_threshold", "toy_train 0.0", "toy_train 0.0"]
        assert not stand.left()


WALK = """
import sys
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from tests.engine.toys import chain
Executor(Store(sys.argv[1]), None, checkpoint_interval_s=0).compute(chain({}))
"""


def test_a_chain_is_computed_once_and_planned_as_done(stand):
    executor = Executor(stand.store(), None)
    value = executor.compute(chain()).arrays["value"]
    again = Executor(stand.store(), None)
    assert not [event for event in again.walk([chain()]) if event.what == "computed"]
    assert np.array_equal(again.compute(chain()).arrays["value"], value)
    plan = make_plan([[chain()]], 0, Resolver(stand.store()))
    assert all(count.cached == count.unique for count in plan.stages.values())
    first = next(step for step in chain().walk() if not step.parents)
    assert Costs(stand.store()).seconds(first) is not None


def test_a_failed_stage_leaves_its_failure_and_no_lease(stand):
    executor = Executor(stand.store(), None)
    with pytest.raises(StageFailed, match="told to fail") as caught:
        executor.compute(chain(fail=True))
    assert stand.store().failure(caught.value.key).attempts == 1
    assert not stand.left()


def test_what_running_sweeps_use_is_pinned(stand):
    sweep = stand.store().pins
    sweep.add("planned")
    assert stand.store().pins.keys() == set()
    with sweep.held():
        sweep.add("asked")
        other = stand.store().pins
        with other.held():
            other.add("b")
            deadline = time.monotonic() + 60
            while stand.store().pins.keys() != {"planned", "asked", "b"}:  # a bucket's are written in a while
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert stand.store().pins.keys() >= {"asked"}
    assert stand.store().pins.keys() == set()
    assert not stand.left()

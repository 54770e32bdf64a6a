"""What a bucket needs beside a folder's promises: leases by tags, the log, orphans, a node's copies."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bdtune.engine import object_lease, object_place, publication_log
from bdtune.engine.execute import Executor
from bdtune.engine.manifest import Cost
from bdtune.engine.node_cache import NodeCache
from bdtune.engine.object_checkpoint import ObjectCheckpoint
from bdtune.engine.object_lease import ObjectLeases
from bdtune.engine.object_place import ObjectPlace
from bdtune.engine.objects import open_bucket
from bdtune.engine.owner import me
from bdtune.engine.publication_log import PublicationLog
from bdtune.engine.stage import Artefact
from bdtune.engine.store import ARRAYS, Store
from bdtune.errors import OutageError, UserError
from tests.engine.toys import chain

KEY = "0123456789abcdef"


class Faulty:
    """Objects whose operations note their names, and fail where a test says so."""

    def __init__(self, inner):
        self.inner, self.address = inner, inner.address
        self.asked: list[tuple[str, str]] = []
        self.fails = lambda operation, name: False

    def __getattr__(self, operation):
        def ask(name, *rest):
            self.asked.append((operation, name))
            if self.fails(operation, name):
                raise OutageError("the server is away")
            return getattr(self.inner, operation)(name, *rest)

        return ask


@pytest.fixture
def objects(tmp_path):
    return Faulty(open_bucket(f"memory://{tmp_path}"))


def opened(objects, tmp_path, cache="cache"):
    return Store(ObjectPlace(objects, NodeCache(tmp_path / cache, 10**9)))


def publish(store, key=KEY, seconds=1.5, **arrays):
    artefact = Artefact(arrays or {"a": np.arange(4)}, {"acc": 0.5}, ({"epoch": 1},))
    return store.publish(key, "train", {"stage": "t.toy", "version": 1}, artefact, cost=Cost(seconds, 0))


class Clock:
    """A clock that a test sets."""

    def __init__(self, now=100.0):
        self.now = now

    def __call__(self):
        return self.now


def elsewhere(objects, **change):
    """Write a lease of a process on another host."""
    content = json.dumps({**me(), "host": "elsewhere", "nonce": "theirs", **change}).encode()
    return objects.inner.put(f"leases/{KEY}", content)


def test_a_lease_is_stale_once_its_tag_stood_still_by_the_observers_own_clock(objects):
    elsewhere(objects, beat=0)
    clock = Clock()
    leases = ObjectLeases(objects, clock)
    for beat in range(1, 5):
        assert leases.held_by_other(KEY)
        clock.now += object_lease.STALE_S - 1
        assert leases.held_by_other(KEY), "renewed since"
        elsewhere(objects, beat=beat)
        assert leases.held_by_other(KEY)
    clock.now += object_lease.STALE_S + 1
    assert not leases.held_by_other(KEY)
    late = ObjectLeases(objects, clock)
    assert late.held_by_other(KEY), "who sees it for the first time cannot know"
    with late.try_hold(KEY) as mine:
        assert not mine
    with leases.try_hold(KEY) as mine:
        assert mine
        assert late.held_by_other(KEY)
    assert objects.get(f"leases/{KEY}") is None


def test_of_two_that_find_it_stale_one_takes_it_over(objects):
    elsewhere(objects)
    clock = Clock()
    one, two = ObjectLeases(objects, clock), ObjectLeases(objects, clock)
    assert one.held_by_other(KEY)
    assert two.held_by_other(KEY)
    clock.now += object_lease.STALE_S + 1
    with one.try_hold(KEY) as first, two.try_hold(KEY) as second:
        assert (first, second) == (True, False)


def test_a_renewed_lease_has_another_tag_and_a_lost_one_is_let_be(objects, caplog):
    clock = Clock()
    leases = ObjectLeases(objects, clock)
    with leases.try_hold(KEY):
        first = objects.get(f"leases/{KEY}")
        leases.renew()
        second = objects.get(f"leases/{KEY}")
        assert first.tag != second.tag
        objects.fails = lambda operation, name: operation == "put_if_match"
        leases.renew()
        assert "cannot be renewed" in caplog.text
        assert leases.holds(KEY), "the server may come back in time"
        objects.fails = lambda operation, name: False
        leases.renew()
        assert leases.holds(KEY)
        elsewhere(objects)  # suspended for long, it was taken over
        leases.renew()
        assert not leases.holds(KEY)
    assert b"theirs" in objects.get(f"leases/{KEY}").content
    assert "took the lease" in caplog.text


def test_a_lease_that_was_silent_for_long_is_given_back_only_if_it_is_still_ones_own(objects):
    clock = Clock()
    leases = ObjectLeases(objects, clock)
    with leases.try_hold(KEY):
        clock.now += object_lease.STALE_S + 1
        elsewhere(objects)
    assert b"theirs" in objects.get(f"leases/{KEY}").content
    objects.delete(f"leases/{KEY}")
    with leases.try_hold(KEY):
        clock.now += object_lease.STALE_S + 1
    assert objects.get(f"leases/{KEY}") is None


def test_leases_are_renewed_by_themselves(objects, monkeypatch):
    monkeypatch.setattr(object_lease, "HEARTBEAT_S", 0.01)
    leases = ObjectLeases(objects)
    with leases.try_hold(KEY):
        tags = {objects.get(f"leases/{KEY}").tag}
        deadline = time.monotonic() + 60
        while len(tags) < 3:
            tags.add(objects.get(f"leases/{KEY}").tag)
            assert time.monotonic() < deadline


@pytest.mark.parametrize("at", ["payloads", "entries"])
def test_a_publication_that_breaks_off_leaves_no_entry_and_its_files_go_after_a_day(
    objects, tmp_path, monkeypatch, at
):
    store = opened(objects, tmp_path)
    objects.fails = lambda operation, name: operation.startswith("put") and name.startswith(at)
    with pytest.raises(OutageError):
        publish(store)
    objects.fails = lambda operation, name: operation.startswith("put") and name.endswith("curve.jsonl")
    with pytest.raises(OutageError):
        publish(store)
    objects.fails = lambda operation, name: False
    other = opened(objects, tmp_path, "other")
    assert not other.has(KEY)
    assert other.every_key() == []
    publish(other)
    assert opened(objects, tmp_path, "third").open(KEY) is not None
    before = len(list(objects.list("payloads")))
    assert before > 2
    assert other.place.clear_orphans() == 0, "another process may be publishing just now"
    monkeypatch.setattr(object_place, "ORPHANED", timedelta(0))
    assert other.place.clear_orphans() == before - 2
    assert opened(objects, tmp_path, "fourth").open(KEY) is not None


def test_others_learn_from_the_log_without_asking_for_each_key(objects, tmp_path):
    reader, writer = opened(objects, tmp_path), opened(objects, tmp_path, "other")
    assert not reader.has(KEY)
    for number in range(40):
        publish(writer, f"{number:016x}")
    objects.asked.clear()
    assert not any(reader.has(f"{number:016x}") for number in range(40, 80))
    assert not [name for _, name in objects.asked if name.startswith("entries")]
    assert len(objects.asked) < 20
    reader.catch_up()
    objects.asked.clear()
    assert all(reader.has(f"{number:016x}") for number in range(40))
    assert [operation for operation, name in objects.asked if name.startswith("entries")] == ["get"] * 40
    assert len(list(objects.list("log"))) <= 2, "one object of one writer, or two where a minute ended"


def test_who_was_killed_before_it_could_say_so_is_found_out_under_the_lease(objects, tmp_path):
    writer, reader = opened(objects, tmp_path), opened(objects, tmp_path, "other")
    objects.fails = lambda operation, name: operation == "put" and name.startswith("log")
    executor = Executor(writer, None)
    executor.compute(chain())
    objects.fails = lambda operation, name: False
    key = executor.resolver.key(chain())
    assert not reader.has(key)
    assert not [event for event in Executor(reader, None).walk([chain()]) if event.what == "computed"]
    third = opened(objects, tmp_path, "third")
    assert third.has(key), "the one that found it out has said so"


def at(minute):
    return datetime(2026, 1, 2, 3, 0, tzinfo=UTC) + timedelta(minutes=minute)


def test_writers_whose_clocks_differ_are_read(objects):
    now = [at(0)]
    reader = PublicationLog(objects, lambda: now[0])
    for early, late in ((0, -14), (1, -10), (20, 8)):
        now[0] = at(max(0, early))
        PublicationLog(objects, lambda early=early: at(early)).append({"key": f"early{early}"})
        reader.refresh(now=True)
        PublicationLog(objects, lambda late=late: at(late)).append({"key": f"late{late}"})
        reader.refresh(now=True)
        assert {f"early{early}", f"late{late}"} <= reader.published
    ahead = PublicationLog(objects, lambda: at(600))
    ahead.append({"key": "ahead"})
    reader.refresh(now=True)
    PublicationLog(objects, lambda: at(21)).append({"key": "after"})
    reader.refresh(now=True)
    assert {"ahead", "after"} <= reader.published


def test_a_clock_that_goes_back_loses_no_row(objects):
    now = [at(5)]
    writer = PublicationLog(objects, lambda: now[0])
    writer.append({"key": "a"})
    now[0] = at(3)
    writer.append({"key": "b"})
    now[0] = at(5)
    writer.append({"key": "c"})
    reader = PublicationLog(objects, lambda: at(6))
    reader.refresh()
    assert reader.published == {"a", "b", "c"}


def test_rows_that_met_an_outage_go_with_the_next_one(objects):
    now = [at(5)]
    writer = PublicationLog(objects, lambda: now[0])
    writer.append({"key": "a"})
    objects.fails = lambda operation, name: operation == "put"
    writer.append({"key": "b"})
    now[0] = at(7)
    writer.append({"key": "c"})
    objects.fails = lambda operation, name: False
    now[0] = at(9)
    writer.append({"key": "d"})
    reader = PublicationLog(objects, lambda: at(9))
    reader.refresh()
    assert reader.published == set("abcd")
    assert len(list(objects.list("log"))) == 2


def test_old_objects_of_the_log_become_one_and_readers_notice_nothing(objects, monkeypatch):
    monkeypatch.setattr(publication_log, "MERGED_FROM", 5)
    for minute in range(8):
        PublicationLog(objects, lambda minute=minute: at(minute)).append({"key": str(minute), "seconds": 1.0})
    reader = PublicationLog(objects, lambda: at(10))
    reader.refresh()
    assert PublicationLog(objects, lambda: at(10)).merge() == 0, "too young"
    assert PublicationLog(objects, lambda: at(80)).merge() == 8
    assert PublicationLog(objects, lambda: at(80)).merge() == 0
    assert len(list(objects.list("log"))) == 1
    fresh = PublicationLog(objects, lambda: at(80))
    fresh.refresh()
    reader.refresh(now=True)
    assert fresh.published == reader.published == set("01234567")
    assert list(fresh.costs.values()) == list(reader.costs.values())


def test_a_reader_that_comes_while_the_log_is_merged_reads_the_rest_of_it(objects, monkeypatch):
    monkeypatch.setattr(publication_log, "MERGED_FROM", 5)
    for minute in range(8):
        PublicationLog(objects, lambda minute=minute: at(minute)).append({"key": str(minute)})
    reader, listing = PublicationLog(objects, lambda: at(80)), objects.inner.list

    def before_the_merge(prefix, after=""):
        found = list(listing(prefix, after))
        PublicationLog(objects.inner, lambda: at(80)).merge()
        return found

    monkeypatch.setattr(objects, "list", before_the_merge, raising=False)
    reader.refresh()
    assert reader.published == set("01234567")


def test_a_node_reads_each_content_once_and_a_damaged_copy_is_fetched_again(objects, tmp_path):
    publish(opened(objects, tmp_path, "writers"))
    reader = opened(objects, tmp_path)
    assert reader.open(KEY) is not None
    objects.asked.clear()
    assert reader.open(KEY) is not None
    other = opened(objects, tmp_path)  # another process of the node
    assert other.open(KEY) is not None
    assert not [name for _, name in objects.asked if name.startswith("payloads")]
    for copy in (tmp_path / "cache").glob("??/*"):
        copy.write_bytes(b"\0" * copy.stat().st_size)
    third = opened(objects, tmp_path)
    assert np.array_equal(third.open(KEY).arrays["a"], np.arange(4))
    assert len([name for _, name in objects.asked if name.startswith("payloads")]) == 2
    assert not list(objects.list("quarantine")), "the store's own files are right"


def test_verifying_reads_the_store_and_no_copies(objects, tmp_path):
    store = opened(objects, tmp_path)
    publish(store)
    [path] = [each.name for each in objects.list("payloads") if each.name.endswith(ARRAYS)]
    objects.inner.put(path, b"wrong")
    assert store.open(KEY) is not None, "from the copy of the node that made it"
    assert opened(objects, tmp_path).open(KEY, copies=False) is None


def test_a_nodes_copies_stay_within_their_bound_and_the_last_used_ones_are_kept(tmp_path):
    cache = NodeCache(tmp_path, 1000)
    contents = [bytes([number]) * 300 for number in range(5)]
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    for age, (content, digest) in enumerate(zip(contents[:3], digests, strict=False)):
        cache.put(content)
        moment = time.time() - 100 + age
        os.utime(tmp_path / digest[:2] / digest, (moment, moment))
    assert cache.get(digests[0], 300) == contents[0]  # used now
    cache.put(contents[3])
    assert [cache.get(digest, 300) is not None for digest in digests] == [True, False, True, True, False]
    cache.put(b"x" * 2000)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 1000
    other = NodeCache(tmp_path, 500)
    other.put(contents[4])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 500
    assert other.get(digests[4], 300) == contents[4]


def test_a_copy_without_room_on_the_disk_is_done_without(objects, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    store = opened(objects, tmp_path)
    publish(store)
    assert store.open(KEY) is not None


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("BDTUNE_CACHE", str(tmp_path / "here"))
    monkeypatch.setenv("BDTUNE_CACHE_GB", "0.5")
    cache = NodeCache.of_this_node()
    assert (cache.folder, cache.most_bytes) == (tmp_path / "here" / "objects", 500_000_000)


class Slow:
    """Objects whose uploads of checkpoints wait for a test."""

    def __init__(self, objects):
        self.go, self.begun, self.sent = threading.Event(), threading.Event(), []
        self._objects = objects

    def __getattr__(self, name):
        return getattr(self._objects, name)

    def put(self, name, content):
        self.begun.set()
        assert self.go.wait(60)
        self.sent.append(content)
        self._objects.put(name, content)


def saved(done):
    return {"x": np.full(3, done)}, {"done": done}


def test_a_stage_does_not_wait_for_its_checkpoint_and_only_the_latest_one_is_sent(objects):
    slow = Slow(objects)
    slot = ObjectCheckpoint(slow, f"checkpoints/{KEY}", 0.0)
    array = np.zeros(3)
    slot.save({"x": array}, {"done": 0})
    assert slow.begun.wait(60)
    for done in (1, 2, 3):
        array += 1
        slot.save({"x": array}, {"done": done})  # while the first one is on its way
    array += 100
    slow.go.set()
    arrays, info = slot.load()
    assert (info, list(arrays["x"])) == ({"done": 3}, [3.0] * 3)
    assert len(slow.sent) == 2


@pytest.mark.parametrize("keep", [True, False])
def test_what_still_waits_is_sent_where_the_state_is_kept_and_nothing_comes_after(objects, keep):
    slow = Slow(objects)
    slot = ObjectCheckpoint(slow, f"checkpoints/{KEY}", 0.0)
    slot.save(*saved(1))
    assert slow.begun.wait(60)
    slot.save(*saved(2))
    closing = threading.Thread(target=slot.close, kwargs={"keep": keep})
    closing.start()
    while not keep and slot._waiting is not None:
        time.sleep(0.01)
    slow.go.set()
    closing.join(60)
    assert not closing.is_alive()
    assert len(slow.sent) == 1 + keep


@pytest.mark.parametrize("error", [OutageError("away"), UserError("credentials have run out")])
def test_after_an_upload_that_failed_the_next_state_is_sent(objects, caplog, error):
    slot = ObjectCheckpoint(objects, f"checkpoints/{KEY}", 0.0)

    def refuse(operation, name):
        if operation == "put":
            raise error

    objects.fails = refuse
    slot.save(*saved(1))
    slot.close(keep=True)
    assert str(error) in caplog.text
    objects.fails = lambda operation, name: False
    slot.save(*saved(2))
    assert slot.load()[1] == {"done": 2}


def test_a_released_stage_has_its_last_state_in_the_bucket_before_its_lease_is_free(objects, tmp_path):
    store = opened(objects, tmp_path)
    executor = Executor(store, None, checkpoint_interval_s=1e9)
    walk = executor.walk([chain(epochs=5)])
    next(event for event in walk if event.what == "tick")
    executor.save_soon()
    key = next(event for event in walk if event.what == "tick").key
    walk.close()
    assert opened(objects, tmp_path, "other").checkpoint(key).load()[1]["epoch"] == 2
    put = objects.asked.index(("put", f"checkpoints/{key}"))
    assert put < objects.asked.index(("delete", f"leases/{key}"))


def test_another_process_of_the_same_task_takes_a_lease_over_at_once(objects):
    elsewhere(objects, task="sweep-7/trial")
    other = ObjectLeases(objects)
    other.task = "sweep-7/another"
    with other.try_hold(KEY) as mine:
        assert not mine
    leases = ObjectLeases(objects)
    leases.task = "sweep-7/trial"
    with leases.try_hold(KEY) as mine:
        assert mine
        with leases.try_hold(KEY) as again:
            assert not again, "its own is no forerunner's"


def test_an_outage_is_no_stages_failure_and_costs_no_checkpoint_of_a_running_one(objects, tmp_path, caplog):
    store = opened(objects, tmp_path)
    executor = Executor(store, None, checkpoint_interval_s=0)
    objects.fails = lambda operation, name: name.startswith("checkpoints") and operation == "put"

    def wait(event):  # a thread sends it, which a stage that ends at once does not wait for
        until = time.monotonic() + 30
        while event.what == "tick" and "is not saved" not in caplog.text and time.monotonic() < until:
            time.sleep(0.01)

    assert executor.compute(chain(epochs=3), wait).arrays
    assert "is not saved" in caplog.text
    objects.fails = lambda operation, name: name.startswith("payloads")
    executor = Executor(store, None)
    with pytest.raises(OutageError):
        executor.compute(chain(plus=1.0))
    objects.fails = lambda operation, name: False
    assert not list(objects.list("failed"))
    assert not list(objects.list("leases"))
    assert executor.compute(chain(plus=1.0)).arrays


def test_a_lease_of_the_dead_is_cleared_and_others_are_let_be(objects, tmp_path):
    store = opened(objects, tmp_path)
    elsewhere(objects)
    objects.put("leases/dead", json.dumps({**me(), "pid": 2**22 + 1}).encode())
    with store.leases.try_hold("mine"):
        opened(objects, tmp_path).clear_leftovers()
        assert {each.name for each in objects.list("leases")} == {f"leases/{KEY}", "leases/mine"}

"""How many bytes of results move: what a plan says, what a node's copies count, what a trial records."""

from __future__ import annotations

import pytest

from bdtune.engine.execute import Executor
from bdtune.engine.node_cache import Moved, NodeCache
from bdtune.engine.object_place import ObjectPlace
from bdtune.engine.objects import open_bucket
from bdtune.engine.plan import make_plan
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from tests.engine.toys import chain

TAILS = (0.0, 1.0, 2.0)
TRAIN, DERIVE = "toy_train", "toy_threshold"


def run(store, node):
    """Compute a node as a trial does, which needs its result in the store only."""
    for _ in Executor(store, None).walk([node]):
        pass


def planned(store, seed=0):
    plan = make_plan([[chain(tail=tail, seed=seed)] for tail in TAILS], 0, Resolver(store))
    return plan.stages


def sizes(store):
    return {manifest.key: manifest.size for manifest in store.entries()}


def parts(store, node):
    """Return the sizes of a chain's head, threshold and tail."""
    resolver = Resolver(store)
    return [resolver.manifest(each).size for each in node.walk()]


def test_nothing_is_known_of_stages_that_were_never_run(tmp_path):
    stages = planned(Store(tmp_path))
    assert {(count.written, count.read) for name, count in stages.items() if name == DERIVE} == {(None, 0)}
    assert (stages[TRAIN].written, stages[TRAIN].read) == (None, None)


def test_each_trial_reads_once_what_another_one_computed(tmp_path):
    store = Store(tmp_path)
    run(store, chain(tail=0.0))
    head, threshold, tail = parts(store, chain(tail=0.0))
    stages = planned(Store(tmp_path))
    assert (stages[TRAIN].written, stages[TRAIN].read) == (2 * tail, 2 * (head + threshold))
    assert (stages[DERIVE].written, stages[DERIVE].read) == (0, 0)


def test_a_trial_keeps_what_it_computes_in_memory(tmp_path):
    store = Store(tmp_path)
    run(store, chain(tail=0.0, seed=7))  # from which sizes are known
    head, threshold, tail = parts(store, chain(tail=0.0, seed=7))
    stages = planned(Store(tmp_path))
    assert not stages[TRAIN].exact
    assert stages[TRAIN].written == head + 3 * tail
    assert stages[TRAIN].read == 2 * (head + threshold), "the first trial computes head and threshold itself"
    assert (stages[DERIVE].written, stages[DERIVE].read) == (threshold, 0)
    assert stages[TRAIN].read == planned(Store(tmp_path))[TRAIN].read


def test_what_is_in_the_store_is_neither_written_nor_read_again(tmp_path):
    store = Store(tmp_path)
    for tail in TAILS:
        run(store, chain(tail=tail))
    assert {(count.written, count.read) for count in planned(Store(tmp_path)).values()} == {(0, 0)}


def test_a_store_of_an_earlier_version_says_nothing_of_sizes(tmp_path):
    store = Store(tmp_path)
    run(store, chain(seed=7))
    file = tmp_path / "costs.jsonl"
    file.write_text(file.read_text().replace('"bytes"', '"unheard"'))
    assert planned(Store(tmp_path))[TRAIN].written is None


@pytest.fixture
def node(tmp_path):
    """Return a function that opens a bucket's store as a process of a named node does."""
    address = f"memory://{tmp_path}"
    return lambda name: Store(ObjectPlace(open_bucket(address), NodeCache(tmp_path / name, 10**9)))


def test_a_node_counts_what_it_fetched_and_what_it_had(node):
    first, tail = chain(tail=0.0), chain(tail=1.0)
    run(node("one"), first)
    own = {manifest.key: manifest.cost for manifest in node("one").entries()}
    assert {(cost.fetched_bytes, cost.served_bytes) for cost in own.values()} == {(0, 0)}, "all in memory"
    head, threshold, _ = parts(node("one"), first)

    there = node("two")  # has no copies
    run(there, tail)
    cost = Resolver(there).manifest(tail).cost
    assert (cost.fetched_bytes, cost.served_bytes) == (head + threshold, 0)
    assert there.place.moved == Moved(head + threshold, 0)

    again = chain(tail=2.0)
    here = node("two")  # another process of that node
    run(here, again)
    cost = Resolver(here).manifest(again).cost
    assert (cost.fetched_bytes, cost.served_bytes) == (0, head + threshold)
    assert here.place.moved == Moved(0, head + threshold)


def test_a_damaged_copy_is_counted_as_fetched(node, tmp_path):
    run(node("one"), chain(tail=0.0))
    for copy in (tmp_path / "one").glob("??/*"):
        copy.write_bytes(b"\0" * copy.stat().st_size)
    store = node("one")
    head, threshold, _ = parts(store, chain(tail=0.0))
    run(store, chain(tail=1.0))
    assert store.place.moved == Moved(head + threshold, 0)


def test_nothing_is_counted_in_a_folder(tmp_path):
    store = Store(tmp_path)
    run(store, chain(tail=0.0))
    run(Store(tmp_path), chain(tail=1.0))
    assert store.place.moved == Moved()
    assert {manifest.cost.fetched_bytes for manifest in store.entries()} == {0}

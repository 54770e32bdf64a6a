"""What a driver learns of publications without opening a file for each key."""

from __future__ import annotations

import sys

import pytest

from bdtune.engine import demand
from bdtune.engine.demand import missing
from bdtune.engine.execute import Executor
from bdtune.engine.files import append_line
from bdtune.engine.folder_place import COSTS
from bdtune.engine.ready_queue import Job, ReadyQueue
from bdtune.engine.store import Store
from tests.engine.toys import chain


@pytest.fixture
def executor(tmp_path):
    return Executor(Store(tmp_path / "store"), resident=None)


def other(executor):
    """Another process of the same store."""
    return Executor(Store(executor.store.root), resident=None)


def first_of(node):
    return next(step for step in node.walk() if not step.parents)


class Opens:
    """Counts the files that are opened below a folder."""

    def __init__(self, folder):
        self.folder, self.count = str(folder), 0
        sys.addaudithook(self.hook)

    def hook(self, event, args):
        self.count += event == "open" and str(args[0]).startswith(self.folder)


def test_news_are_what_any_process_published_since_the_last_call(executor):
    node = chain()
    worker = other(executor)
    worker.compute(first_of(node))
    executor.store.news()
    assert executor.store.news() == set(), "what was there before is no news"
    worker.compute(node)
    found = executor.store.news()
    assert worker.resolver.key(node) in found
    assert worker.resolver.key(first_of(node)) not in found
    assert executor.store.news() == set()


def test_torn_and_older_lines_are_passed_over_and_a_line_under_way_waits_for_its_end(executor):
    store = executor.store
    store.news()
    append_line(store.root / COSTS, '{"stage": "of an earlier version", "seconds": 1}')
    append_line(store.root / COSTS, '{"key": "a1')
    with (store.root / COSTS).open("ab") as file:
        file.write(b'[1]\n{"key": "b2", "sta')
    assert store.news() == set()
    with (store.root / COSTS).open("ab") as file:
        file.write(b'ge": "x"}\n')
    assert store.news() == {"b2"}


def test_an_absent_key_is_absent_until_it_is_in_the_news_or_looked_for(executor):
    store, key = executor.store, executor.resolver.key(first_of(chain()))
    store.news()
    assert not store.has(key)
    other(executor).compute(first_of(chain()))
    assert not store.has(key)
    store.look_again(key)
    assert store.has(key), "as who holds its lease does: the line may be lost"
    later = executor.resolver.key(first_of(chain(seed=1)))
    assert not store.has(later)
    other(executor).compute(first_of(chain(seed=1)))
    assert not store.has(later)
    store.end_news()
    assert store.has(later), "from now on every look is at the folder"


def test_before_the_news_are_asked_for_every_look_is_at_the_folder(executor):
    key = executor.resolver.key(first_of(chain()))
    assert not executor.store.has(key)
    other(executor).compute(first_of(chain()))
    assert executor.store.has(key)


@pytest.mark.parametrize("running", [2, 40])
def test_a_take_opens_no_more_files_however_many_trials_run(executor, running):
    queue = ReadyQueue(executor)
    for seed in range(running):
        queue.add(Job(str(seed), [chain(seed=seed)]))
        assert queue.take() is not None
    opens = Opens(executor.store.root)
    for _ in range(10):
        assert queue.take() is None
        assert queue.settled() == []
    assert opens.count <= 25, "one look at the log for each call"


def test_followers_go_on_as_soon_as_another_process_publishes(executor):
    queue = ReadyQueue(executor)
    for tail in range(3):
        queue.add(Job(str(tail), [chain(tail=tail)]))
    leader = queue.take()
    assert queue.take() is None
    other(executor).compute(first_of(leader.nodes[0]))
    assert {queue.take().id, queue.take().id} | {leader.id} == {"0", "1", "2"}


def test_what_another_driver_lost_the_line_of_is_found_by_a_look_now_and_then(executor, monkeypatch):
    queue, worker = ReadyQueue(executor), other(executor)
    key = executor.resolver.key(first_of(chain()))
    with worker.store.leases.try_hold(key):
        queue.add(Job("mine", [chain(seed=5)]))
        queue.add(Job("theirs", [chain()]))
        assert queue.take().id == "mine"
        assert queue.take() is None
        worker.compute(chain(seed=7))  # something else, so that the log is there
    log = executor.store.root / COSTS
    worker.store.publish(
        key,
        "train",
        worker.resolver.preimage(first_of(chain())),
        worker.compute(first_of(chain(seed=7))),
        cost=worker.store.manifest(worker.resolver.key(first_of(chain(seed=7)))).cost,
    )
    log.write_text("\n".join(line for line in log.read_text().splitlines() if key not in line) + "\n")
    queue._look_again = 0.0
    assert queue.take().id == "theirs"


def test_a_derived_stage_that_reads_much_is_left_to_a_trial(executor, monkeypatch):
    node = chain()
    executor.compute(first_of(node))
    middle = next(step for step in node.walk() if step.stage.kind == "derive")
    size = executor.resolver.manifest(first_of(node)).size
    monkeypatch.setattr(demand, "MOST_READ", size - 1)
    assert [step.name for step, _ in missing(executor, node)] == [middle.name]
    assert executor.resolver.manifest(middle) is None
    monkeypatch.setattr(demand, "MOST_READ", size)
    assert [step.name for step, _ in missing(executor, node)] == [node.name]
    assert executor.resolver.manifest(middle) is not None, "computed here and now"


def test_while_a_trial_derives_what_reads_much_those_that_may_equal_it_wait(executor, monkeypatch):
    monkeypatch.setattr(demand, "MOST_READ", 0)
    executor.compute(first_of(chain()))
    queue = ReadyQueue(executor)
    queue.add(Job("a", [chain(limit=-100.0)]))
    leader = queue.take()
    queue.add(Job("b", [chain(limit=-100.0)]))
    assert queue.take() is None
    for _ in executor.walk(leader.nodes):
        assert queue.take() is None
    queue.done(leader.id)
    assert [settled.job.id for settled in queue.settled()] == ["b"]


def test_each_missing_stage_is_named_once_though_several_need_it(executor):
    found = [key for _, key in missing(executor, chain())]
    assert len(found) == len(set(found)) == 1


def test_what_others_are_compared_with_goes_first_once_one_of_them_runs(executor):
    queue = ReadyQueue(executor, lambda node: 1.0 + node.stage.epochs if node.name == "toy_train" else 0.0)
    queue.add(Job("baseline", [chain(seed=2)]))
    queue.add(Job("long", [chain(seed=1, epochs=9)], compared_with="baseline"))
    queue.add(Job("longer", [chain(seed=3, epochs=12)], compared_with="baseline"))
    assert [queue.take().id for _ in range(3)] == ["longer", "baseline", "long"]
    assert queue.take() is None
    assert queue.waiting == 0

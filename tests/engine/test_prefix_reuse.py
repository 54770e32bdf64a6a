"""Shorter trainings whose results a longer one publishes on its way."""

from __future__ import annotations

import pytest

from bdtune.engine.execute import Executor
from bdtune.engine.node import Node
from bdtune.engine.plan import make_plan
from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.engine.ready_queue import Job, ReadyQueue
from bdtune.engine.store import Store
from tests.engine.toys import Numbers, Pass, Train


@pytest.fixture
def executor(tmp_path):
    return Executor(Store(tmp_path / "store"), resident=None, made_for="sweep/long")


def training(epochs, kind=Pass, **knobs):
    return Node(kind(epochs=epochs, **knobs), {"x": Numbers(value=1.0)}, 3)


def waiting(executor, *lengths):
    """Return a queue in which trials wait that each end in a training of another length."""
    queue = ReadyQueue(executor)
    nodes = [training(length) for length in lengths]
    executor.prefix_reuse.want(nodes)
    for length, node in zip(lengths, nodes, strict=True):
        queue.add(Job(str(length), [node]))
    return queue


def digest(executor, node):
    return executor.store.manifest(executor.resolver.key(node)).digest


def test_the_longest_publishes_what_the_others_would_end_with(executor, tmp_path):
    nodes = {length: training(length) for length in (2, 4, 5)}
    executor.prefix_reuse.want(nodes.values())
    done = [event.node.stage.epochs for event in executor.walk([nodes[5]]) if event.what == "computed"]
    assert done == [5]
    alone = Executor(Store(tmp_path / "alone"), resident=None)
    for length, node in nodes.items():
        alone.compute(node)
        assert digest(executor, node) == digest(alone, node)
        owner = executor.store.manifest(executor.resolver.key(node)).made_for
        assert owner == ("sweep/long" if length == 5 else "")
    assert len(list(executor.store.entries())) == 3  # those that nobody wants are not kept
    assert not [event for event in executor.walk(nodes.values()) if event.what == "started"]


def test_only_those_of_the_same_training_are_passed(executor):
    other = [training(2, plus=1.0), training(2, kind=Train), Node(Pass(epochs=2), {"x": Numbers()}, 4)]
    executor.prefix_reuse.want([*other, training(2)])
    assert {length: node.recipe for length, node in executor.prefix_reuse.reused(training(3)).items()} == {
        2: training(2).recipe
    }
    assert not executor.prefix_reuse.reused(training(2))
    assert not executor.prefix_reuse.reused(training(3, kind=Train))
    assert executor.prefix_reuse.is_reused(training(1))
    assert not executor.prefix_reuse.is_reused(training(2))


def test_what_concerns_a_trial_survives_the_journey_to_its_process():
    prefix_reuse = PrefixReuse()
    prefix_reuse.want([training(2), training(5), training(7, plus=1.0)])
    there = PrefixReuse(prefix_reuse.of([training(5), training(1, kind=Train)]))
    assert list(there.reused(training(5))) == [2]
    assert not there.reused(training(9, plus=1.0))


def test_the_longest_goes_first_and_the_others_wait_until_it_has_passed_them(executor):
    queue = waiting(executor, 2, 5, 3)
    leader = queue.take()
    assert leader.id == "5"
    assert queue.take() is None
    assert queue.held_back == 2
    settled = []
    for event in executor.walk(leader.nodes):
        if event.what == "tick":
            settled.append((event.tick.epoch, [found.job.id for found in queue.settled()]))
    assert settled == [(1, []), (2, ["2"]), (3, ["3"]), (4, []), (5, [])]


def test_when_the_longest_is_lost_the_next_one_takes_over(executor):
    queue = waiting(executor, 2, 5, 3)
    lost = queue.take()
    queue.done(lost.id)
    assert queue.take().id == "3"
    assert queue.take() is None  # 2 is reused by 3


def test_one_that_was_passed_before_anyone_wanted_it_is_trained_in_the_end(executor):
    executor.compute(training(5))
    queue = waiting(executor, 5, 2)
    assert [found.job.id for found in queue.settled()] == ["5"]
    assert queue.take().id == "2"


def test_one_that_another_process_is_computing_is_left_to_it(executor):
    executor.prefix_reuse.want([training(2), training(3)])
    key = executor.resolver.key(training(2))
    with Store(executor.store.root).leases.try_hold(key) as held:
        assert held
        executor.compute(training(3))
        assert not executor.store.has(key)


def test_a_plan_counts_the_longest_alone(executor):
    nodes = [training(length) for length in (2, 5, 3)]
    plan = make_plan([[node] for node in nodes], 0, executor.resolver)
    assert (plan.stages["toy_pass"].unique, plan.stages["toy_pass"].reused) == (3, 2)
    executor.compute(nodes[1])
    plan = make_plan([[node] for node in nodes], 0, executor.resolver)
    assert (plan.stages["toy_pass"].cached, plan.stages["toy_pass"].reused) == (1, 1)

from __future__ import annotations

import heapq

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.ready_queue import Job, ReadyQueue
from bdtune.engine.store import ARRAYS, Store
from tests.engine.toys import chain


@pytest.fixture
def executor(tmp_path):
    return Executor(Store(tmp_path / "store"), resident=None)


def run(executor, job):
    for _ in executor.walk(job.nodes):
        pass


def test_of_trials_that_share_a_stage_one_is_released(executor):
    queue = ReadyQueue(executor)
    works = [Job(str(tail), [chain(tail=tail)]) for tail in range(3)]
    for job in works:
        queue.add(job)
    leader = queue.take()
    assert queue.take() is None
    assert queue.held_back == 2
    executor.compute(leader.nodes[0].inputs["base"])  # the shared stage, not yet the leader's own tail
    followers = {queue.take().id, queue.take().id}
    assert followers | {leader.id} == {"0", "1", "2"}
    assert queue.take() is None


def test_a_trial_whose_own_stage_the_leader_will_compute_later_is_held_back(executor):
    queue = ReadyQueue(executor)
    for name, limit in (("a", -100.0), ("b", -99.0)):  # the same verdict, so the same tail
        queue.add(Job(name, [chain(limit=limit)]))
    leader = queue.take()
    executor.compute(leader.nodes[0].inputs["base"])
    assert queue.take() is None, "the follower's tail has the key that the leader is about to compute"
    run(executor, leader)
    queue.done(leader.id)
    assert [settled.job.id for settled in queue.settled()] == ["b"]


def test_of_jobs_that_are_about_as_urgent_the_preferred_one_goes_first(executor):
    lengths = {"long": 20, "shorter": 19, "preferred": 18, "short": 10}
    queue = ReadyQueue(executor, lambda node: float(node.stage.epochs) if node.name == "toy_train" else 0.0)
    for number, (name, epochs) in enumerate(lengths.items()):
        queue.add(Job(name, [chain(seed=number, epochs=epochs)]))
    queue.add(Job("other rank", [chain(seed=9, epochs=20)], rank=1))
    wanted = ["other rank", "short", "preferred"]

    def prefer(job):
        return wanted.index(job.id) + 1 if job.id in wanted else 0

    assert queue.take(prefer).id == "preferred"
    assert queue.take(prefer).id == "long", "the next ones are much shorter, or of another rank"
    assert queue.take().id == "shorter"
    assert [queue.take(prefer).id for _ in range(2)] == ["short", "other rank"]


def test_what_the_store_answers_never_starts(executor):
    node = chain()
    executor.compute(node)
    queue = ReadyQueue(executor)
    queue.add(Job("a", [node]))
    assert [settled.job.id for settled in queue.settled()] == ["a"]
    assert queue.take() is None
    assert queue.waiting == 0


def test_when_a_leader_is_lost_a_follower_takes_over(executor):
    queue = ReadyQueue(executor)
    for tail in (1.0, 2.0):
        queue.add(Job(str(tail), [chain(tail=tail)]))
    leader = queue.take()
    assert queue.take() is None
    queue.done(leader.id)
    assert queue.take() is not None


def test_a_failed_shared_stage_settles_its_followers_as_failed(executor):
    queue = ReadyQueue(executor)
    for tail in (1.0, 2.0):
        queue.add(Job(str(tail), [chain(tail=tail, fail=True)]))
    leader = queue.take()
    with pytest.raises(StageFailed):
        run(executor, leader)
    queue.done(leader.id)
    assert queue.take() is None
    (settled,) = queue.settled()
    assert settled.failure.status == "failed"
    assert queue.waiting == 0


def test_a_prerequisite_holds_a_trial_back(executor):
    baseline = chain(plus=9.0)
    queue = ReadyQueue(executor)
    queue.add(Job("defended", [chain()], first=[baseline]))
    queue.add(Job("baseline", [baseline]))
    assert queue.take().id == "baseline"
    assert queue.take() is None
    executor.compute(baseline)
    assert queue.take().id == "defended"


def test_a_trial_held_by_another_driver_starts_rather_than_stall(executor):
    node = chain()
    first = next(step for step in node.walk() if not step.parents)
    key = executor.resolver.key(first)
    other = Store(executor.store.root)
    with other.leases.try_hold(key):
        queue = ReadyQueue(executor)
        queue.add(Job("a", [node]))
        queue.add(Job("b", [chain(tail=1.0)]))
        assert queue.take() is not None
        assert queue.take() is None


def test_followers_go_before_leaders_and_long_paths_before_short(executor):
    executor.compute(chain(plus=1.0).inputs["base"])
    queue = ReadyQueue(executor, predict=lambda node: 1.0 + getattr(node.stage, "plus", 0.0))
    for name, knobs in {"new": {"plus": 2.0}, "long": {"plus": 3.0}, "follower": {"plus": 1.0}}.items():
        queue.add(Job(name, [chain(**knobs)]))
    assert [queue.take().id for _ in range(3)] == ["follower", "long", "new"]


def simulate(executor, works, slots):
    """Run works on virtual slots where a stage takes as long as its `plus` says; returns the makespan."""
    queue = ReadyQueue(executor, predict=lambda node: getattr(node.stage, "plus", 0.0))
    for job in works:
        queue.add(job)
    clock, running = 0.0, []  # (time of next event, order, job, iterator)
    count = 0
    while True:
        queue.settled()
        while len(running) < slots and (job := queue.take()):
            count += 1
            heapq.heappush(running, (clock, count, job, executor.walk(job.nodes)))
        if not running:
            assert queue.waiting == 0
            return clock
        clock, _, job, walk = heapq.heappop(running)
        event = next(walk, None)
        if event is None:
            queue.done(job.id)
            continue
        assert event.what != "waiting", "a released trial never waits for another"
        count += 1
        plus = getattr(event.node.stage, "plus", 0.0)
        heapq.heappush(running, (clock + (plus if event.what == "started" else 0.0), count, job, walk))


def test_two_prefixes_and_six_tails_on_two_slots_come_near_the_ideal(executor):
    works = [
        Job(f"{prefix}{tail}", [chain(plus=prefix, tail=1.0 + tail / 1000)])
        for prefix in (4.0, 4.0001)
        for tail in range(3)
    ]
    assert simulate(executor, works, slots=2) == pytest.approx(7.0, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 1), st.integers(0, 3)), min_size=1, max_size=10),
    st.integers(1, 3),
)
def test_any_set_of_trials_is_finished_without_waiting_or_stalling(tmp_path_factory, trials, slots):
    executor = Executor(Store(tmp_path_factory.mktemp("store")), resident=None)
    works = [
        Job(str(index), [chain(plus=float(plus), limit=100.0 * limit, tail=float(tail))])
        for index, (plus, limit, tail) in enumerate(trials)
    ]
    simulate(executor, works, slots)
    for job in works:
        assert executor.resolver.manifest(job.nodes[0]) is not None


def test_while_a_verdict_is_being_computed_those_that_may_equal_it_wait(executor):
    queue = ReadyQueue(executor)
    for name, limit in (("a", -100.0), ("b", -99.0)):
        queue.add(Job(name, [chain(limit=limit)]))
    leader = queue.take()
    walk = executor.walk(leader.nodes)
    while next(walk).node.name != "toy_threshold":
        pass
    assert queue.take() is None, "nobody can know yet whether the leader's tail is the follower's"
    for event in walk:
        assert queue.take() is None, f"{event.what} {event.node.name}"
    queue.done(leader.id)
    assert [settled.job.id for settled in queue.settled()] == ["b"]


def test_a_damaged_result_is_trained_again_by_a_trial_not_by_the_driver(executor):
    first = chain().inputs["base"]
    executor.compute(first)
    file = executor.store.place.folder(executor.resolver.key(first)) / ARRAYS
    file.write_bytes(file.read_bytes()[:-1])
    queue = ReadyQueue(Executor(Store(executor.store.root), resident=None))
    queue.add(Job("a", [chain()]))
    job = queue.take()
    assert not executor.store.place.folder(executor.resolver.key(first)).exists(), "quarantined, not computed"
    assert job.claims == {executor.resolver.key(first)}

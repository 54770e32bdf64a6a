"""Stages of several trials that are computed together: who takes them, what is published, what fails."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bdtune.engine.execute import Companion, Executor, StageFailed
from bdtune.engine.node import Node
from bdtune.engine.numerics import Numerics
from bdtune.engine.ready_queue import Job, ReadyQueue
from bdtune.engine.store import Store
from bdtune.errors import ConfigError
from tests.doubles import CPU
from tests.engine.toys import Joined, Numbers, Train, joined


@pytest.fixture
def executor(tmp_path):
    return Executor(Store(tmp_path / "store"), resident=None, made_for="sweep/0")


@pytest.fixture
def log(tmp_path, monkeypatch):
    monkeypatch.setenv("BDTUNE_TOY_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def middle(goal: Node) -> Node:
    return goal.inputs["base"]


def prepared(executor, goals):
    """Compute what lies before the stages that may be computed together."""
    for goal in goals:
        executor.compute(middle(goal).inputs["x"])
    return [Companion(middle(goal), f"sweep/{number}") for number, goal in enumerate(goals)]


def manifests(executor, goals):
    return [executor.resolver.manifest(middle(goal)) for goal in goals]


def test_a_key_says_whether_trainings_are_computed_together_and_not_how_many(executor):
    keys = {fused: middle(joined(fused=fused)).recipe for fused in (1, 2, 8)}
    assert keys[2] == keys[8] != keys[1]
    assert keys[1] == Node(Joined(), {"x": Node(Train(), {"x": Numbers()}, 0, CPU)}, 0, CPU).recipe
    assert "fused" not in CPU.tag()
    assert "fused" not in CPU.identity(), "trials' ids are as they were"
    assert Numerics(fused=4).identity() == Numerics(fused=8).identity() != Numerics().identity()
    assert Numerics(fused=8).tag()["fused"] is True
    alone = {middle(joined(fused=fused)).inputs["x"].recipe for fused in (1, 8)}
    assert len(alone) == 1, "what is always computed alone has one key"


def test_a_fuse_key_is_shared_by_what_differs_in_numbers():
    keys = {middle(joined(seed, plus=float(seed), first=1.0)).fuse_key for seed in range(3)}
    assert len(keys) == 1
    assert keys != {None}
    assert middle(joined(epochs=2)).fuse_key not in keys
    assert middle(joined(fused=1)).fuse_key is None
    assert joined().fuse_key is None


def test_a_subclass_is_computed_alone_unless_it_says_so():
    class Other(Joined):
        name = "toy_joined_otherwise"

    assert Other.fused_by == ()
    assert Joined.fused_by == ("epochs",)


def test_a_stage_that_is_computed_with_others_says_how_and_by_which_knobs():
    expected = [
        "Unfounded.fused_by: expected a knob of the stage, got 'epoch'. Did you mean 'epochs'?",
        "Unfounded.fused_by: expected a stage with `together`, got one without. "
        "Override `together`, or leave `fused_by` out",
    ]
    with pytest.raises(ConfigError) as refused:

        class Unfounded(Train):
            fused_by = ("epoch",)

    assert refused.value.lines() == expected


def test_companions_are_computed_together_and_published_each_under_its_key(executor, log, tmp_path):
    goals = [joined(seed, plus=float(seed)) for seed in range(3)]
    executor.companions = prepared(executor, goals)
    events = [event.what for event in executor.walk([goals[0]])]
    assert "together 3" in log.read_text()
    assert events.count("tick") == 4, "of each training, and of the trial's own tail"
    found = manifests(executor, goals)
    assert [manifest.cost.together for manifest in found] == [3, 3, 3]
    assert [manifest.made_for for manifest in found] == ["sweep/0", "sweep/1", "sweep/2"]
    alone = Executor(Store(tmp_path / "alone"), resident=None)
    for goal, manifest in zip(goals, found, strict=True):
        assert alone.compute(middle(goal)).arrays == executor.store.open(manifest.key).arrays
    assert manifests(alone, goals)[0].cost.together == 1
    assert not any(executor.store.leases.held_by_other(manifest.key) for manifest in found)


def test_no_more_are_computed_together_than_the_numerics_allow(executor, log):
    goals = [joined(seed, fused=2) for seed in range(4)]
    executor.companions = prepared(executor, goals)
    list(executor.walk([goals[0]]))
    assert "together 2" in log.read_text()
    assert [manifest is not None for manifest in manifests(executor, goals)] == [True, True, False, False]


def test_what_has_no_place_in_the_group_is_left_to_its_own_trial(executor):
    goals = [joined(seed) for seed in range(5)]
    executor.companions = prepared(executor, goals)
    list(executor.walk([goals[0]]))
    assert [manifest is not None for manifest in manifests(executor, goals)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert executor.store.failure(executor.resolver.key(middle(goals[4]))) is None
    executor.compute(goals[4])


def test_companions_that_are_not_ready_or_taken_or_of_another_kind_are_left(executor, log, tmp_path):
    goals = [joined(0), joined(1), joined(2), joined(3, epochs=2), joined(4)]
    executor.companions = prepared(executor, [goals[0], goals[2], goals[3], goals[4]])
    executor.companions = [*executor.companions, Companion(middle(goals[1]), "x")]  # its input is missing
    with Executor(Store(tmp_path / "store"), None).store.leases.try_hold(
        executor.resolver.key(middle(goals[2]))
    ) as mine:
        assert mine
        list(executor.walk([goals[0]]))
    assert "together 2" in log.read_text()
    there = [manifest is not None for manifest in manifests(executor, goals)]
    assert there == [True, False, False, False, True]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("how", ["fail", "diverge"])
def test_one_that_fails_leaves_the_others_untouched(executor, who, how):
    goals = [joined(seed, **({how: True} if seed == who else {})) for seed in range(3)]
    executor.companions = prepared(executor, goals)
    if who == 0:
        with pytest.raises(StageFailed, match="told to fail" if how == "fail" else "loss is nan"):
            list(executor.walk([goals[0]]))
    else:
        list(executor.walk([goals[0]]))
    there = [manifest is not None for manifest in manifests(executor, goals)]
    assert there == [seed != who for seed in range(3)]
    failure = executor.store.failure(executor.resolver.key(middle(goals[who])))
    assert failure.status == {"fail": "failed", "diverge": "diverged"}[how]


def test_a_walk_that_is_closed_gives_all_leases_back_and_keeps_the_states(tmp_path):
    executor = Executor(Store(tmp_path / "store"), None, checkpoint_interval_s=0.0)
    goals = [joined(seed, epochs=4) for seed in range(2)]
    executor.companions = prepared(executor, goals)
    walk = executor.walk([goals[0]])
    for event in walk:
        if event.what == "tick" and event.tick.epoch == 2 and event.node is middle(goals[0]):
            break
    walk.close()
    keys = [executor.resolver.key(middle(goal)) for goal in goals]
    for key in keys:
        with executor.store.leases.try_hold(key) as mine:
            assert mine
        assert executor.store.checkpoint(key).load() is not None
    expected = [Executor(Store(tmp_path / "other"), None).compute(goal) for goal in goals]
    for goal, other in zip(goals, expected, strict=True):  # one by one
        np.testing.assert_array_equal(executor.compute(goal).arrays["value"], other.arrays["value"])


def work_off(executor, queue, slots=1):
    """Do what trials do, so many at a time: each ends at the next stage that may be computed together."""
    legs = []
    while queue.waiting or queue.running:
        queue.settled()
        while len(queue.running) < slots and (job := queue.take()) is not None:
            legs.append(job)
        for job in list(queue.running.values()):
            executor.companions = [Companion(node, f"s/{name}") for name, node in job.company.values()]
            executor.made_for = f"s/{job.id}"
            aside = False
            for event in executor.walk(job.nodes):
                if event.what == "joinable" and event.node.recipe != job.next[0].recipe:
                    aside = True
                    break
            queue.done(job.id)
            if aside:
                queue.add(job)
    return legs


@pytest.mark.parametrize("slots", [1, 3])
def test_the_queue_hands_out_groups_and_nothing_is_computed_twice(executor, log, slots):
    queue = ReadyQueue(executor)
    goals = [joined(seed) for seed in range(8)]
    for seed, goal in enumerate(goals):
        queue.add(Job(str(seed), [goal]))
    work_off(executor, queue, slots)
    lines = Counter(Path(log).read_text().splitlines())
    assert lines["toy_joined 0.0"] == 8
    assert lines["toy_train 0.0"] == 16
    sizes = sorted(manifest.cost.together for manifest in manifests(executor, goals))
    assert sizes[-1] >= 9 - slots, "all that were free had come to it before it was handed out"
    assert {manifest.made_for for manifest in manifests(executor, goals)} == {f"s/{n}" for n in range(8)}


def test_a_full_group_does_not_wait_for_the_others(executor):
    queue = ReadyQueue(executor)
    ready = [joined(seed, fused=2) for seed in range(3)]
    prepared(executor, ready[:2])
    for seed, goal in enumerate(ready):
        queue.add(Job(str(seed), [goal]))
    first = queue.take()
    assert first.id == "1", "the one that made it full"
    assert [name for name, _ in first.company.values()] == ["0"]
    assert queue.held_back == 1
    assert queue.take().id == "2"


def test_what_is_computed_for_others_is_free_again_when_its_trial_is_lost(executor):
    queue = ReadyQueue(executor)
    goals = [joined(seed) for seed in range(3)]
    prepared(executor, goals)
    for seed, goal in enumerate(goals):
        queue.add(Job(str(seed), [goal]))
    lost = queue.take()
    assert queue.take() is None
    assert queue.held_back == 2
    queue.done(lost.id)
    again = queue.take()
    assert len(again.company) == 1
    assert queue.waiting == 1


def test_a_trial_that_is_judged_epoch_by_epoch_is_computed_alone(executor):
    queue = ReadyQueue(executor)
    goals = [joined(seed) for seed in range(3)]
    prepared(executor, goals)
    for seed, goal in enumerate(goals):
        queue.add(Job(str(seed), [goal], alone=seed == 0))
    taken = [queue.take() for _ in range(2)]
    assert sorted(len(job.company) for job in taken) == [0, 1]
    assert next(job for job in taken if job.alone).company == {}

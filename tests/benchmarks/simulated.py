"""A cluster in discrete events: virtual GPUs and clock around the real queue; nothing sleeps or computes.

A trial occupies a GPU from its start to its end, and computes its stages one after the other. A node that is
lost takes its trials with it: they are put back at once, and a training goes on from its last checkpoint, a
stage without epochs from its beginning.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bdtune.engine.demand import missing
from bdtune.engine.ready_queue import Job, ReadyQueue

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bdtune.engine.execute import Executor
    from bdtune.engine.node import Node

HOUR_S = 3600.0

Seconds = Callable[["Node"], float]
"""How long a stage takes."""
Finish = Callable[["Node", str, str], None]
"""Leaves the result of a stage, with its key and whom it was made for."""


@dataclass(frozen=True)
class Cluster:
    """Nodes with equal numbers of GPUs, some of which are lost."""

    nodes: int
    gpus_per_node: int
    lost_per_hour: float = 0.0
    """Share of the nodes that is lost in an hour, at random moments."""
    back_after_s: float = 600.0
    """Seconds until another node takes a lost one's place."""
    checkpoint_s: float = 30.0
    """A checkpoint is written after the first epoch that ends so long after the last one."""

    @property
    def slots(self) -> int:
        """All GPUs."""
        return self.nodes * self.gpus_per_node


@dataclass
class Running:
    """A trial on a GPU."""

    job: Job
    slot: int
    number: int
    """Which of all starts it is: events of one that was lost mean nothing."""
    node: Node | None = None
    """The stage that it computes."""
    key: str = ""
    since: float = 0.0


@dataclass
class Course:
    """What a simulation came to; times in seconds of the simulation."""

    makespan: float = 0.0
    work: float = 0.0
    """Of all different stages, each once."""
    longest_path: float = 0.0
    lost: float = 0.0
    """Computed and gone with a node."""
    nodes_lost: int = 0
    trials_lost: int = 0
    """Times that a running trial was lost."""
    waited_inside: float = 0.0
    """GPU seconds in which a trial waited on its GPU for a stage of another one."""
    idle_held: float = 0.0
    """GPU seconds without a trial while trials were held back."""
    idle_end: float = 0.0
    """GPU seconds without a trial while none was left to start."""
    gone: float = 0.0
    """GPU seconds of nodes that were lost and not back."""
    started: int = 0
    settled: int = 0
    """Trials that needed no GPU."""
    curve: list[tuple[float, int, int]] = field(default_factory=list)
    """Time, busy GPUs, trials held back: whenever one of them changes."""
    twice: list[str] = field(default_factory=list)
    """Keys that were computed by two trials at once, or again: there should be none."""

    def lower_bound(self, slots: int) -> float:
        """Return what no order can beat: the longest trial, or all work spread evenly."""
        return max(self.longest_path, self.work / slots)


class Simulation:
    """Runs all jobs on a cluster; `seconds` says how long a stage takes."""

    def __init__(self, executor: Executor, cluster: Cluster, seconds: Seconds, finish: Finish, seed: int = 0):
        self.executor, self.cluster, self.seconds, self.finish = executor, cluster, seconds, finish
        self.queue = ReadyQueue(executor, seconds)
        self.random = random.Random(seed)
        self.course = Course()
        self.clock = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count, self._numbers = itertools.count(), itertools.count()
        self._free = list(range(cluster.slots))
        self._down: set[int] = set()
        self._running: dict[str, Running] = {}
        self._computing: dict[str, Running] = {}
        self._waiting: dict[str, list[Running]] = defaultdict(list)
        self._kept: dict[str, float] = defaultdict(float)  # seconds of a stage that its checkpoint holds
        self._left = 0

    def run(self, jobs: Sequence[Job]) -> Course:
        """Return the course of all jobs, each of which ends."""
        self._left = len(jobs)
        for job in jobs:
            self.queue.add(job)
        self._lose_nodes_of_hour(0)
        self._fill()
        while self._left:
            at, _, act = heapq.heappop(self._events)
            self._pass(at)
            act()
            while self._events and self._events[0][0] == self.clock:  # what ends at once is seen at once
                heapq.heappop(self._events)[2]()
            self._fill()
        self.course.makespan = self.clock
        self.course.longest_path = max(self._path(job.nodes) for job in jobs)
        return self.course

    def _path(self, nodes: Iterable[Node]) -> float:
        """Return the seconds of the longest chain of stages that lead to one of these."""
        longest: dict[str, float] = {}
        for step in (step for node in nodes for step in node.walk()):
            before = max((longest[parent.recipe] for parent in step.parents), default=0.0)
            longest[step.recipe] = before + self.seconds(step)
        return max(longest.values())

    def _at(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.clock + seconds, next(self._count), act))

    def _pass(self, to: float) -> None:
        """Move the clock, and count what the GPUs did meanwhile."""
        passed, waiting = to - self.clock, sum(map(len, self._waiting.values()))
        gone = len(self._down) * self.cluster.gpus_per_node
        idle = self.cluster.slots - gone - len(self._running)
        self.course.gone += gone * passed
        self.course.waited_inside += waiting * passed
        if self.queue.waiting:
            self.course.idle_held += idle * passed
        else:
            self.course.idle_end += idle * passed
        self.clock = to

    def _fill(self) -> None:
        """Do what the driver does: settle what the store answers, and start what may start."""
        while self._free and (job := self.queue.take()) is not None:
            self._start(job)
        settled = self.queue.settled()
        self._left -= len(settled)
        self.course.settled += len(settled)
        now = (self.clock, len(self._running), self.queue.held_back)
        if not self.course.curve or self.course.curve[-1][1:] != now[1:]:
            self.course.curve.append(now)

    def _start(self, job: Job) -> None:
        running = Running(job, self._free.pop(), next(self._numbers))
        self._running[job.id] = running
        self.course.started += 1
        self._next(running)

    def _next(self, running: Running) -> None:
        """Let a trial turn to its next stage; one that has none left ends."""
        self.executor.made_for = running.job.made_for
        found = (step for goal in running.job.nodes for step in missing(self.executor, goal))
        step = next(found, None)
        if step is None:
            self._leave(running)
            self.queue.done(running.job.id)
            self._left -= 1
            return
        running.node, running.key = step
        if running.key in self._computing:
            self._waiting[running.key].append(running)
            return
        if self.executor.store.has(running.key):
            self.course.twice.append(running.key)
        self._computing[running.key] = running
        running.since = self.clock
        left = self.seconds(running.node) - self._kept[running.key]
        self._at(left, lambda: self._finished(running, step))

    def _finished(self, running: Running, step: tuple[Node, str]) -> None:
        if self._running.get(running.job.id) is not running:
            return  # its node was lost
        node, key = step
        self.finish(node, key, running.job.made_for)
        self.course.work += self.seconds(node)
        del self._computing[key]
        self._next(running)
        self._wake(key)

    def _wake(self, key: str) -> None:
        for other in self._waiting.pop(key, []):
            if self._running.get(other.job.id) is other:
                self._next(other)

    def _leave(self, running: Running) -> None:
        del self._running[running.job.id]
        if running.slot // self.cluster.gpus_per_node not in self._down:
            self._free.append(running.slot)

    def _lose_nodes_of_hour(self, hour: int) -> None:
        """Say which nodes are lost within an hour, and when; the last part of a node by chance."""
        expected = self.cluster.lost_per_hour * self.cluster.nodes
        if not expected:
            return
        count = int(expected) + (self.random.random() < expected % 1)
        for node in self.random.sample(range(self.cluster.nodes), count):
            self._at(self.random.uniform(0, HOUR_S), lambda node=node: self._lose(node))
        self._at(HOUR_S, lambda: self._lose_nodes_of_hour(hour + 1))

    def _lose(self, node: int) -> None:
        if node in self._down:
            return
        self._down.add(node)
        self.course.nodes_lost += 1
        own = range(node * self.cluster.gpus_per_node, (node + 1) * self.cluster.gpus_per_node)
        self._free = [slot for slot in self._free if slot not in own]
        lost = [running for running in self._running.values() if running.slot in own]
        for running in lost:
            self._leave(running)
            self._drop(running)
        for running in lost:  # as the driver does: its claims are free, and it is put back
            self.queue.done(running.job.id)
            self.queue.add(running.job)
        for running in lost:
            self._wake(running.key)
        self._at(self.cluster.back_after_s, lambda: self._bring_back(node, own))

    def _drop(self, running: Running) -> None:
        """Forget what a lost trial computed since its last checkpoint."""
        self.course.trials_lost += 1
        for waiting in self._waiting.values():
            if running in waiting:
                waiting.remove(running)
        if self._computing.get(running.key) is not running:
            return
        del self._computing[running.key]
        assert running.node is not None
        done = self._kept[running.key] + self.clock - running.since
        kept = max(self._kept[running.key], self._checkpointed(running.node, done))
        self.course.lost += done - kept
        self._kept[running.key] = kept

    def _checkpointed(self, node: Node, done: float) -> float:
        """Return how much of so many seconds a stage's last checkpoint holds."""
        epochs = node.stage.length()
        if not epochs:
            return 0.0
        epoch = self.seconds(node) / epochs
        every = max(1, math.ceil(self.cluster.checkpoint_s / epoch)) * epoch
        return math.floor(done / every + 1e-9) * every

    def _bring_back(self, node: int, own: Iterable[int]) -> None:
        self._down.discard(node)
        self._free.extend(own)

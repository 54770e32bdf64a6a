"""Which trial may start now: hold back those whose next expensive stage is already being computed.

Waiting inside a trial wastes the trial's device; waiting here costs nothing.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bdtune.engine.demand import missing
from bdtune.engine.execute import StageFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bdtune.engine.execute import Executor
    from bdtune.engine.stage import Node

LOOK_S = 1.0
"""Between two looks at the leases of other drivers."""
ALIKE = 0.9
"""Jobs whose remaining path is so long, of the longest, may start in its place."""
MOST_ALIKE = 16
"""Jobs that are compared."""
Priority = tuple[int, bool, bool, float, int, int]


@dataclass(eq=False)
class Job:
    """One trial as the queue sees it: the nodes whose results it must leave in the store.

    `first` nodes must be in the store before the trial starts (the baseline, when early
    judgement needs it); another job computes them.
    """

    id: str
    nodes: Sequence[Node]
    first: Sequence[Node] = ()
    made_for: str = ""
    """Entered in the manifests of derived stages that are run here for this job."""
    priority: bool = False
    """True if other jobs report their results relative to this one: it is scheduled first."""
    rank: int = 0
    """Jobs of a lower rank start before those of a higher one."""
    claims: set[str] = field(default_factory=set)
    """Keys this job has yet to publish while it runs, as far as they are known."""
    may_reveal: dict[str, set[str]] = field(default_factory=dict)
    """Derived keys that it is just computing -> full names of stages behind them: their keys depend on it."""


@dataclass(frozen=True)
class Settled:
    """A job that needs no trial: the store answers it, or a stage it needs has failed."""

    job: Job
    failure: StageFailed | None = None


class ReadyQueue:
    """Holds all waiting jobs; `take` returns the next that may start, `settled` those that need not."""

    def __init__(self, executor: Executor, predict: Callable[[Node], float] = lambda node: 1.0) -> None:
        self.executor = executor
        self.predict = predict
        self.running: dict[str, Job] = {}
        self._settled: list[Settled] = []
        self._ready: list[tuple[Priority, Job]] = []
        self._blocked: dict[str, list[Job]] = defaultdict(list)
        self._count = itertools.count()
        self._looked_at = 0.0

    def add(self, job: Job) -> None:
        """Take in a job and see at once where it belongs."""
        self._place(job)

    @property
    def waiting(self) -> int:
        """Number of works neither running nor settled."""
        return len(self._ready) + self.held_back

    @property
    def held_back(self) -> int:
        """Number of works that wait for a stage that is being computed."""
        return sum(len(works) for works in self._blocked.values())

    def settled(self) -> list[Settled]:
        """Return the works that were found settled since the last call."""
        self._look_at_blocked()
        found, self._settled = self._settled, []
        return found

    def take(self, prefer: Callable[[Job], float] | None = None) -> Job | None:
        """Return the next job to start, now running, or None when all others are better held back.

        Of jobs that are about as urgent the one is taken that `prefer` gives most. Never None while works
        wait and none runs.
        """
        self._look_at_blocked()
        while self._ready:
            job = self._pop(prefer)
            if self._place(job, queue=False):
                return self._start(job)
        if not self.running and self._blocked:
            # Another driver works on what they wait for: one starts and waits on the lease.
            key, works = next(iter(self._blocked.items()))
            job = works.pop()
            if not works:
                del self._blocked[key]
            return self._start(job)
        return None

    def _pop(self, prefer: Callable[[Job], float] | None) -> Job:
        first = heapq.heappop(self._ready)
        if prefer is None:
            return first[1]
        alike = [first]
        while self._ready and len(alike) < MOST_ALIKE and _alike(first[0], self._ready[0][0]):
            alike.append(heapq.heappop(self._ready))
        best = max(alike, key=lambda entry: prefer(entry[1]))  # of equal ones the first
        for entry in alike:
            if entry is not best:
                heapq.heappush(self._ready, entry)
        return best[1]

    def done(self, work_id: str) -> None:
        """Note that a running job has ended, in whatever way; its unkept claims are free again."""
        for key in self.running.pop(work_id).claims:
            self._release(key)

    def set_aside(self, work_id: str) -> None:
        """Note that a running job makes no progress for now: its claims are free for those who wait."""
        job = self.running[work_id]
        claims, job.claims, job.may_reveal = job.claims, set(), {}
        for key in claims:
            self._release(key)

    def _start(self, job: Job) -> Job:
        self.running[job.id] = job
        self._claim(job)
        return job

    def _claim(self, job: Job) -> None:
        self.executor.made_for = job.made_for
        job.claims, job.may_reveal = set(), {}
        for node in job.nodes:
            for step, key in missing(self.executor, node):
                job.claims.add(key)
                reused = self.executor.prefix_reuse.reused(step).values()
                job.claims |= {known for shorter in reused if (known := self.executor.resolver.key(shorter))}
                if step.stage.kind == "derive":
                    keyless = (later for later in node.walk() if self.executor.resolver.key(later) is None)
                    job.may_reveal[key] = {later.stage.full_name() for later in keyless}

    def _look_at_blocked(self) -> None:
        """Place again every job whose blocking key is published, or has no worker any more."""
        for job in self.running.values():
            if any(self.executor.store.has(key) for key in job.claims):
                self._claim(job)  # new results make more keys known
        published = [key for key in self._blocked if self.executor.store.has(key)]
        orphans: list[str] = []
        if time.monotonic() - self._looked_at > LOOK_S:
            self._looked_at = time.monotonic()
            orphans = [key for key in self._blocked if not self._is_claimed(key)]
        for key in {*published, *orphans}:
            self._release(key)

    def _release(self, key: str) -> None:
        for job in self._blocked.pop(key, []):
            self._place(job)

    def _place(self, job: Job, queue: bool = True) -> bool:
        """Put a job where it belongs; returns whether it may start now, and queues it then."""
        self.executor.made_for = job.made_for
        try:
            prerequisite = self._first_missing(job.first)
            needed = self._first_missing(job.nodes)
        except StageFailed as failure:
            self._settled.append(Settled(job, failure))
            return False
        if needed is None:
            self._settled.append(Settled(job))
            return False
        blocking = prerequisite[1] if prerequisite is not None else self._blocking(*needed)
        if blocking is not None:
            self._blocked[blocking].append(job)
            return False
        if queue:
            heapq.heappush(self._ready, (self._priority(job), job))
        return True

    def _first_missing(self, nodes: Sequence[Node]) -> tuple[Node, str] | None:
        """Return the first expensive stage that is missing and its key; raises if it has failed before."""
        for node in nodes:
            for step, key in missing(self.executor, node):
                failure = self.executor.store.failure(key)
                if failure is not None:
                    raise StageFailed(step, key, failure.status, failure.error)
                return step, key
        return None

    def _blocking(self, step: Node, key: str) -> str | None:
        """Return the key to wait for before a stage may start: its own, or one that may lead to the same."""
        if self._is_claimed(key):
            return key
        may_reveal = (pair for job in self.running.values() for pair in job.may_reveal.items())
        return next((derived for derived, names in may_reveal if step.stage.full_name() in names), None)

    def _is_claimed(self, key: str) -> bool:
        if any(key in job.claims for job in self.running.values()):
            return True
        return self.executor.store.leases.held_by_other(key)

    def _priority(self, job: Job) -> Priority:
        """Lower ranks go first, then the priority, followers of a finished stage, the longest remaining path.

        Where seconds are not known yet epochs decide, so that a training starts before the shorter ones whose
        results it saves.
        """
        steps = {step.recipe: step for node in job.nodes for step in node.walk()}.values()
        todo = [step for step in steps if self.executor.resolver.manifest(step) is None]
        seconds, epochs = sum(map(self.predict, todo)), sum(step.stage.length() for step in todo)
        return job.rank, not job.priority, len(todo) == len(steps), -seconds, -epochs, next(self._count)


def _alike(first: Priority, other: Priority) -> bool:
    """Return whether a job may start in place of the first one: of its rank, and about as long or longer.

    Whether it follows a finished stage is not looked at: that is of the moment when it was queued.
    """
    return first[:2] == other[:2] and other[3] <= ALIKE * first[3]  # minus seconds

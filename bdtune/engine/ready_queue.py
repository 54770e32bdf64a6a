"""Which trial may start now: hold back those whose next expensive stage is already being computed.

Waiting inside a trial wastes the trial's device; waiting here costs nothing.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bdtune.engine.demand import missing
from bdtune.engine.execute import StageFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bdtune.engine.execute import Executor
    from bdtune.engine.node import Node

LOOK_S = 1.0
"""Between two looks at the leases of other drivers."""
LOOKING = 0.05
"""Part of the time that such looks may take: with many leases they are rarer."""
ALIKE = 0.9
"""Jobs whose remaining path is so long, of the longest, may start in its place."""
MOST_ALIKE = 16
"""Jobs that are compared."""
Priority = tuple[int, bool, bool, bool, float, int, int]
"""Sorts the jobs that may start, see `ReadyQueue._priority`."""


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
    compared_with: str = ""
    """Id of the job that this one's result is reported relative to: it goes first once this one runs."""
    rank: int = 0
    """Jobs of a lower rank start before those of a higher one."""
    claims: set[str] = field(default_factory=set)
    """Keys this job has yet to publish while it runs, as far as they are known."""
    may_reveal: dict[str, set[str]] = field(default_factory=dict)
    """Derived keys that it is just computing -> full names of stages behind them: their keys depend on it."""
    unknown: bool = True
    """Whether it has stages whose keys are not known yet: each of its results may reveal some."""
    alone: bool = False
    """Whether none of its stages is computed together with those of others."""
    next: tuple[Node, str] | None = None
    """The stage that it starts with, and its key; as of when it was found ready."""
    company: dict[str, tuple[str, Node]] = field(default_factory=dict)
    """Of stages that are computed together with its next one: key -> id of their job, node."""

    @property
    def may_return(self) -> bool:
        """Whether it may end before a stage that is computed together with others, to be added again."""
        return not self.alone and any(node.numerics.fuses for node in self.nodes)

    @property
    def fuse_key(self) -> str | None:
        """The `Node.fuse_key` of its next stage."""
        return None if self.alone or self.next is None else self.next[0].fuse_key


@dataclass(frozen=True)
class Settled:
    """A job that needs no trial: the store answers it, or a stage it needs has failed."""

    job: Job
    failure: StageFailed | None = None


class ReadyQueue:
    """Holds all waiting jobs; `take` returns the next that may start, `settled` those that need not.

    It learns from the store's news what is published, and opens no file for what running jobs have yet to do.
    """

    def __init__(self, executor: Executor, predict: Callable[[Node], float] = lambda node: 1.0) -> None:
        self.executor = executor
        self.predict = predict
        self.running: dict[str, Job] = {}
        self._claimed: dict[str, set[str]] = defaultdict(set)  # key -> ids of the running jobs
        self._revealing: dict[str, set[str]] = defaultdict(set)  # full name -> derived keys, see `may_reveal`
        self._settled: list[Settled] = []
        self._ready: list[tuple[Priority, Job]] = []
        self._queued: dict[str, Job] = {}  # jobs in `_ready` by id
        self._joinable: dict[str, dict[str, Job]] = defaultdict(dict)  # the same jobs by fuse key
        self._awaited: set[str] = set()  # ids of jobs that running or ended ones are compared with
        self._blocked: dict[str, list[Job]] = defaultdict(list)
        self._count = itertools.count()
        self._look_again = 0.0
        executor.store.news()  # it begins here

    def add(self, job: Job) -> None:
        """Take in a job and see at once where it belongs."""
        self._place(job)

    @property
    def waiting(self) -> int:
        """Number of works neither running nor settled."""
        return len(self._queued) + self.held_back

    @property
    def held_back(self) -> int:
        """Number of works that wait for a stage that is being computed."""
        return sum(len(works) for works in self._blocked.values())

    def settled(self) -> list[Settled]:
        """Return the works that were found settled since the last call."""
        self._catch_up()
        found, self._settled = self._settled, []
        return found

    def take(self, prefer: Callable[[Job], float] | None = None) -> Job | None:
        """Return the next job to start, now running, or None when all others are better held back.

        Of jobs that are about as urgent the one is taken that `prefer` gives most. Never None while works
        wait and none runs.
        """
        self._catch_up()
        while (job := self._pop(prefer)) is not None:
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

    def _pop(self, prefer: Callable[[Job], float] | None) -> Job | None:
        """Take the most urgent job out of the heap; of those that are about as urgent, the preferred one."""
        alike: list[tuple[Priority, Job]] = []
        while self._ready and len(alike) < (1 if prefer is None else MOST_ALIKE):
            priority, job = self._ready[0]
            if job.id in self._queued and alike and not _alike(alike[0][0], priority):
                break
            entry = heapq.heappop(self._ready)
            if job.id in self._queued:  # else this is its old place
                alike.append(entry)
        if not alike:
            return None
        best = alike[0] if prefer is None else max(alike, key=lambda entry: prefer(entry[1]))
        for entry in alike:
            if entry is not best:
                heapq.heappush(self._ready, entry)
        return self._unqueue(best[1])

    def _unqueue(self, job: Job) -> Job:
        """Take a job out of those that may start; its place in the heap is passed over."""
        del self._queued[job.id]
        if job.fuse_key is not None:
            del self._joinable[job.fuse_key][job.id]
        return job

    def done(self, work_id: str) -> None:
        """Note that a running job has ended, in whatever way; its unkept claims are free again."""
        self._free(self.running.pop(work_id))

    def catch_up(self, work_id: str) -> None:
        """Look at all that a running job had yet to publish: its results are read now."""
        self.executor.store.catch_up()
        for key in self.running[work_id].claims:
            self.executor.store.look_again(key)
        self._catch_up()

    def set_aside(self, work_id: str) -> None:
        """Note that a running job makes no progress for now: its claims are free for those who wait."""
        self._free(self.running[work_id])

    def _start(self, job: Job) -> Job:
        self.running[job.id] = job
        self._gather(job)
        self._claim(job)
        if job.compared_with not in self._awaited:
            self._awaited.add(job.compared_with)
            if (other := self._queued.get(job.compared_with)) is not None:
                self._enqueue(other)  # its old place in the heap is passed over
        return job

    def _gather(self, job: Job) -> None:
        """Let a job that starts compute the next stages of others with its own, where they may be."""
        job.company = {}
        if job.fuse_key is None or job.next is None:
            return
        step, own = job.next
        if self.executor.store.has(own):  # it brings back what was dropped, which is computed alone
            return
        for other in list(self._joinable[job.fuse_key].values()):
            if len(job.company) + 1 >= step.numerics.fused:
                return
            if other.next is None:
                continue
            node, key = other.next
            taken = key == own or key in job.company or self._claimed.get(key)
            if not taken and not self.executor.store.has(key):
                job.company[key] = self._unqueue(other).id, node
                self._blocked[key].append(other)

    def _free(self, job: Job) -> None:
        job.company = {}
        claims = job.claims
        self._unclaim(job)
        for key in claims:
            self._release(key)

    def _claim(self, job: Job) -> None:
        """Enter what a running job has yet to publish. A derived stage that fails, fails in its trial too."""
        self._unclaim(job)
        self.executor.made_for = job.made_for
        with contextlib.suppress(StageFailed):
            for goal in job.nodes:
                self._claim_goal(job, goal)
        job.claims |= {key for key in job.company if not self.executor.store.has(key)}
        job.unknown = any(self.executor.resolver.key(node) is None for node in job.nodes)
        for key in job.claims:
            self._claimed[key].add(job.id)
        for key, names in job.may_reveal.items():
            for name in names:
                self._revealing[name].add(key)

    def _claim_goal(self, job: Job, goal: Node) -> None:
        """Enter what a goal needs; a derived one is left to the trial, as no key depends on it."""
        derived, own = goal.stage.kind == "derive", self.executor.resolver.key(goal)
        if derived and own is not None and self.executor.store.has(own):
            return
        for node in goal.parents if derived else [goal]:
            for step, key in missing(self.executor, node, read=derived):
                self._claim_step(job, node, step, key)
        own = self.executor.resolver.key(goal)
        if derived and own is not None:
            job.claims.add(own)

    def _claim_step(self, job: Job, node: Node, step: Node, key: str) -> None:
        job.claims.add(key)
        reused = self.executor.prefix_reuse.reused(step).values()
        job.claims |= {known for shorter in reused if (known := self.executor.resolver.key(shorter))}
        if step.stage.kind == "derive":
            keyless = (later for later in node.walk() if self.executor.resolver.key(later) is None)
            job.may_reveal[key] = {later.stage.full_name() for later in keyless}

    def _unclaim(self, job: Job) -> None:
        for key in job.claims:
            _take_out(self._claimed, key, job.id)
        for key, names in job.may_reveal.items():
            for name in names:
                _take_out(self._revealing, name, key)
        job.claims, job.may_reveal = set(), {}

    def _catch_up(self) -> None:
        """Place again every job whose blocking key is published, or has no worker any more."""
        while published := self.executor.store.news():  # what is derived here for a job is news, too
            for work_id in {work_id for key in published for work_id in self._claimed.get(key, ())}:
                self._note(self.running[work_id], published)
            for key in published & self._blocked.keys():
                self._release(key)
        if time.monotonic() >= self._look_again:
            self._look_at_others()

    def _note(self, job: Job, published: set[str]) -> None:
        """Take published keys from a running job's claims; new results may make more keys known."""
        if job.unknown or job.may_reveal:
            self._claim(job)
            return
        for key in job.claims & published:
            _take_out(self._claimed, key, job.id)
        job.claims -= published

    def _look_at_others(self) -> None:
        """Release what waits for a key that no job of this driver computes, and no other one either."""
        started = time.monotonic()
        for key in [key for key in self._blocked if key not in self._claimed]:
            self.executor.store.look_again(key)
            if self.executor.store.has(key) or not self.executor.store.leases.held_by_other(key):
                self._release(key)
        ended = time.monotonic()
        self._look_again = ended + max(LOOK_S, (ended - started) / LOOKING)

    def _release(self, key: str) -> None:
        for job in self._blocked.pop(key, []):
            self._place(job)

    def _place(self, job: Job, queue: bool = True) -> bool:
        """Put a job where it belongs; returns whether it may start now, and queues it then."""
        self.executor.made_for = job.made_for
        try:
            prerequisite = self._first(self._missing(job.first))
            needed = self._missing(job.nodes)
            job.next = first = self._first(needed)
            blocking = None
            if prerequisite is not None:
                blocking = prerequisite[1]
            elif first is not None:
                blocking = self._blocking(*first, needed)
        except StageFailed as failure:
            self._settled.append(Settled(job, failure))
            return False
        if first is None:
            self._settled.append(Settled(job))
            return False
        if blocking is not None:
            self._blocked[blocking].append(job)
            return False
        if queue:
            self._enqueue(job)
        return True

    def _enqueue(self, job: Job) -> None:
        self._queued[job.id] = job
        if job.fuse_key is not None:
            self._joinable[job.fuse_key][job.id] = job
        heapq.heappush(self._ready, (self._priority(job), job))

    def _missing(self, nodes: Sequence[Node]) -> Iterator[tuple[Node, str]]:
        """Yield the expensive stages that are missing, with their keys."""
        return itertools.chain.from_iterable(missing(self.executor, node) for node in nodes)

    def _first(self, needed: Iterator[tuple[Node, str]]) -> tuple[Node, str] | None:
        """Return the first missing stage and its key; raises `StageFailed` if it has failed before."""
        for step, key in needed:
            failure = self.executor.store.failure(key)
            if failure is not None:
                raise StageFailed(step, key, failure.status, failure.error)
            return step, key
        return None

    def _blocking(self, step: Node, key: str, later: Iterator[tuple[Node, str]]) -> str | None:
        """Return the key to wait for before a stage may start, if any: its own, or one that may reveal it.

        Where a job of this driver computes the `later` ones too, it is the last of these: nothing can start
        before.
        """
        if not (workers := self._claimed.get(key)):
            if self.executor.store.leases.held_by_other(key):
                return key
            return next(iter(self._revealing.get(step.stage.full_name(), ())), None)
        for _, following in later:
            if not (workers & self._claimed.get(following, set())):
                break
            key = following
        return key

    def _priority(self, job: Job) -> Priority:
        """Lower ranks go first, then what others await, followers of a finished stage, the longest path.

        What is computed together with others waits for these behind what is not, until they are enough.
        Where seconds are not known yet epochs decide, so that a training starts before the shorter ones whose
        results it saves.
        """
        steps = {step.recipe: step for node in job.nodes for step in node.walk()}.values()
        todo = [step for step in steps if self.executor.resolver.manifest(step) is None]
        trainings, left = (sum(step.stage.kind == "train" for step in each) for each in (steps, todo))
        seconds, epochs = sum(map(self.predict, todo)), sum(step.stage.length() for step in todo)
        urgency = job.id not in self._awaited, left == trainings, -seconds, -epochs
        return job.rank, self._waits_for_company(job), *urgency, next(self._count)

    def _waits_for_company(self, job: Job) -> bool:
        """Whether a job's next stage could be computed with those of more jobs than are there."""
        if job.fuse_key is None or job.next is None:
            return False
        return len(self._joinable[job.fuse_key]) < job.next[0].numerics.fused


def _take_out(index: dict[str, set[str]], name: str, value: str) -> None:
    """Take a value out of an index, and its name with the last one."""
    if name in index:
        index[name].discard(value)
        if not index[name]:
            del index[name]


def _alike(first: Priority, other: Priority) -> bool:
    """Return whether a job may start in place of the first one: of its rank, and about as long or longer.

    Whether it follows a finished stage is not looked at: that is of the moment when it was queued.
    """
    return first[:3] == other[:3] and other[4] <= ALIKE * first[4]  # minus seconds

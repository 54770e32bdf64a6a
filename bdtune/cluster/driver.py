"""The driver: knows every trial of a sweep, answers from the store what it can, releases the rest to Tune."""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, cast

from bdtune.cluster.deaths import Deaths
from bdtune.cluster.locality import Locality
from bdtune.config.trial import spec_to_dict
from bdtune.engine.demand import missing
from bdtune.engine.files import append_line
from bdtune.engine.key import key_of
from bdtune.engine.plan import Costs
from bdtune.engine.ready_queue import Job, ReadyQueue
from bdtune.errors import OutageError
from bdtune.metrics import metric_of
from bdtune.trials.results import TrialResult
from bdtune.tuning.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from bdtune.cluster.trial_source import TrialSource
    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.execute import Executor
    from bdtune.engine.node import Node
    from bdtune.engine.ready_queue import Settled
    from bdtune.trials.ledger import Entry, Ledger
    from bdtune.trials.results import Status

ASIDE = "aside"
"""What a trial reports that has come to a stage which may be computed together with those of others."""
OUTAGE = "outage"
"""What a trial reports whose disk is full."""
CUT_OFF = "cut off"
"""What a trial reports whose node does not reach the store, or sees another one."""
STOPPED = "stopped.jsonl"
"""Trials that a scheduler stopped, in the sweep's folder: they stay stopped when the sweep is resumed."""


class Listener(Protocol):
    """What is reported of a sweep while it runs."""

    def trial_done(self, result: TrialResult) -> None:
        """A trial ended, in whatever way."""

    def held(self, count: int) -> None:
        """So many trials wait for a stage that another one computes."""

    def message(self, text: str) -> None:
        """What happens beside the trials' results."""


@dataclass(frozen=True)
class _End:
    """How a trial ended."""

    status: Status
    error: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What a stopped trial had reached."""
    times: Mapping[str, float] = field(default_factory=dict)


class Driver:
    """All trials of one sweep, from the first question to the last result.

    `slots` bounds how many adaptive trials are open at once. Of `ranks`, by trial id, lower ones start first.
    A trial's result is given out when that of its baseline is there, as it is compared with it.
    """

    def __init__(
        self,
        spec: SweepSpec,
        ledger: Ledger,
        executor: Executor,
        source: TrialSource,
        listener: Listener,
        *,
        folder: Path,
        retry_failed: bool = False,
        ranks: Mapping[str, int] | None = None,
    ) -> None:
        self.spec, self.ledger, self.executor = spec, ledger, executor
        self.source, self.listener, self.ranks = source, listener, ranks or {}
        self.folder, self.retry_failed = folder, retry_failed
        self.slots = 1
        self.most_open: Callable[[int], int] = lambda fitting: fitting
        """How many trials are open at a time where so many fit on the nodes."""
        self.results: dict[str, TrialResult] = {}
        costs = Costs(executor.store)
        self.deaths = Deaths()
        self.locality = Locality(executor.resolver)
        self._deadly: set[str | None] = set()  # keys of stages in which trials died too often
        self._outage: str | None = None
        self.queue = ReadyQueue(executor, lambda node: costs.seconds(node) or 1.0)
        self._exhausted = False
        self._tickets: dict[str, list[int]] = defaultdict(list)
        self._ended: dict[str, _End] = {}  # trials whose results wait for their baseline's
        self._enqueued: set[str] = set()
        self._retried: set[str] = set()
        self._started: dict[str, float] = {}
        self._began: dict[str, float] = {}  # the first start of each: one that is set aside has several
        self._judged_by = key_of(
            [SCHEDULERS.find(spec.scheduler.name).identity(), spec.scheduler.identity(), spec.objectives]
        )
        self._stopped = self._read_stopped()

    def answer(self) -> None:
        """Ask for trials and settle what the store answers, until one must be released or all are settled."""
        while not self.queue.waiting and self._ask():
            self._settle()
        if not self.source.adaptive:
            while self._ask():
                pass
        self._settle()

    @property
    def finished(self) -> bool:
        """Whether no trial will be released any more."""
        left = self.queue.waiting or self.deaths.waiting
        returning = any(job.may_return for job in self.queue.running.values())
        return self._halted or (self._exhausted and not left and not returning)

    @property
    def complete(self) -> bool:
        """Whether every trial has its result."""
        left = self.queue.running or self._ended
        return self.finished and not left and self.given_up is None

    @property
    def given_up(self) -> str | None:
        """Why trials were given up though nothing was wrong with them; None where none was."""
        return self._outage or self.deaths.suspicion()

    @property
    def _halted(self) -> bool:
        """Whether no trial can do any good for now."""
        return self._outage is not None or self.deaths.hopeless

    def release(self) -> tuple[str, dict[str, Any]] | None:
        """Return the next trial's id and configuration, or None when all are better held back."""
        with self._noting_outage():
            return self._next()
        return None

    def _next(self) -> tuple[str, dict[str, Any]] | None:
        while not self._halted:
            for again in self.deaths.due():
                self.queue.done(again.id)
                self.queue.add(again)
            job = self.queue.take(self._here if self.locality.matters else None)
            self._settle()
            self.listener.held(self.queue.held_back)
            if job is not None and self._deadly and self._next_key(job) in self._deadly:
                self.queue.done(job.id)
                self.deaths.lost.add(job.id)
                continue
            if job is not None:
                self.locality.started()
                self._started[job.id] = time.time()
                self._began.setdefault(job.id, self._started[job.id])
                return job.id, self._config(job)
            if len(self._tickets) < self.slots and self._ask():
                continue
            if not self.deaths.waiting or len(self.queue.running) > self.deaths.waiting:
                return None
            self.deaths.sleep()  # Tune stalls where nothing runs and nothing is to be run
        return None

    def _here(self, job: Job) -> int:
        return self.locality.here(self.ledger.entries[job.id].graph.stages.values())

    def ended(self, trial: str, report: Mapping[str, Any] | None) -> None:
        """Note a released trial's last report; None when its process died.

        A process that died, a node that is cut off from the store, a disk that is full and a store that does
        not answer are no results: the same command tries again.
        """
        with self._noting_outage():
            self.queue.catch_up(trial)
            self._ended_with(trial, report)

    @contextlib.contextmanager
    def _noting_outage(self) -> Iterator[None]:
        """End the sweep in order where the store does not answer: Tune would stop with a stack."""
        try:
            yield
        except OutageError as error:
            self._outage = self._outage or str(error)

    def _ended_with(self, trial: str, report: Mapping[str, Any] | None) -> None:
        if report is None or report.get("status") == CUT_OFF:  # by now the store has answered the driver
            self._died(trial, None if report is None else report["error"])
            return
        self.deaths.survived()
        self.locality.ended(report.get("node"), self.ledger.entries[trial].graph.stages.values())
        if report.get("status") == OUTAGE:
            self._outage = self._outage or report["error"]
            self.queue.done(trial)
            return
        if report.get("status") == ASIDE:
            job = self.queue.running[trial]
            self.queue.done(trial)
            self.queue.add(job)
            self._settle()
            return
        if report.get("status", "running") == "running":  # the scheduler ended it, not the trial itself
            self._finish(trial, _End("stopped", metrics=_prefixed(report, "metrics/")))
        else:
            self._finish(trial, _End(cast("Status", report["status"]), report.get("error")))
        self.queue.done(trial)
        self._settle()

    def paused(self, trial: str) -> None:
        """Note that a released trial is set aside: what it was computing is nobody's for now."""
        self.queue.set_aside(trial)

    def _died(self, trial: str, cut_off: str | None) -> None:
        """Let a trial whose process died, or was cut off from the store, pause before it is tried again.

        Where that happened too often it is given up.
        It keeps its claims meanwhile, so that no other trial dies in the same stage.
        """
        job = self.queue.running[trial]
        key = self._next_key(job)
        pause = self.deaths.add(job, key, time.time() - self._started[trial], cut_off)
        if pause is None:
            self._deadly.add(key)
            self.queue.done(trial)
        after = "it is left for the next run" if pause is None else f"tried again in {pause:g} s"
        what = "the process of trial {} died" if cut_off is None else "trial {} did not reach the store"
        self.listener.message(f"{what.format(trial)}: {after}" + (f" ({cut_off})" if cut_off else ""))
        self._settle()

    def _next_key(self, job: Job) -> str | None:
        """Return the key of the stage that a job computes first."""
        return next((key for node in job.nodes for _, key in missing(self.executor, node)), None)

    def _ask(self) -> bool:
        """Take in the next proposed trial; returns whether there was one."""
        asked = None if self._exhausted else self.source.ask()
        if asked is None:
            self._exhausted = True
            return False
        ticket, spec = asked
        entry = self.ledger.add(spec)
        self._tickets[entry.id].append(ticket)
        if entry.id in self.results:  # proposed before
            self._tell(self.results[entry.id])
        else:
            self._enqueue(entry)
        return True

    def _enqueue(self, entry: Entry) -> None:
        if entry.id in self._enqueued:
            return
        self._enqueued.add(entry.id)
        baseline = self.ledger.baseline(entry)
        if baseline is not None:
            self._enqueue(baseline)
        if entry.id in self._stopped and self.ledger.result(entry).status != "done":
            self._give_out(self._stopped[entry.id])
            return
        self.executor.prefix_reuse.want(entry.graph.stages.values())
        made_for = f"{self.ledger.sweep}/{entry.id}"
        job = Job(
            entry.id,
            entry.graph.goals,
            self._first(entry),
            made_for,
            compared_with=entry.baseline_id or "",
            rank=self.ranks.get(entry.id, 0),
            alone=self._judged(entry),
        )
        self.queue.add(job)

    def _first(self, entry: Entry) -> list[Node]:
        """Early judgement compares with the baseline, so its numbers must be there."""
        baseline = self.ledger.baseline(entry)
        return baseline.graph.goals if baseline is not None and self._judged(entry) else []

    def _judged(self, entry: Entry) -> bool:
        return self.spec.scheduler.judges and not entry.is_baseline

    def _config(self, job: Job) -> dict[str, Any]:
        entry = self.ledger.entries[job.id]
        company = [(self.ledger.entries[other], node) for other, node in job.company.values()]
        nodes = [*entry.graph.stages.values(), *(node for _, node in company)]
        return {
            "trial": job.id,
            "spec": spec_to_dict(entry.spec),
            "judged": self._judged(entry),
            "prefix_reuse": self.executor.prefix_reuse.of(nodes),
            "starts_with": job.next[0].recipe if job.next is not None else "",
            "company": [
                {"trial": other.id, "spec": spec_to_dict(other.spec), "recipe": node.recipe}
                for other, node in company
            ],
        }

    def _settle(self) -> None:
        for settled in self.queue.settled():
            if settled.failure is None:
                self._finish(settled.job.id, _End("done"))
            elif not self._retry(settled):
                self._finish(settled.job.id, _End(settled.failure.status, str(settled.failure)))

    def _retry(self, settled: Settled) -> bool:
        """Forget an earlier sweep's failure and put the trial back, once, when asked to."""
        assert settled.failure is not None
        key = settled.failure.key
        if not self.retry_failed or settled.job.id in self._retried or settled.job.id in self._started:
            return False
        self._retried.add(settled.job.id)
        self.executor.store.forget_failure(key)
        self.queue.add(settled.job)
        return True

    def _finish(self, trial: str, end: _End) -> None:
        """Give out a trial's result, and those of trials that were only waiting for it."""
        entry = self.ledger.entries[trial]
        if trial in self._started:
            end = replace(end, times={"started": self._began[trial], "ended": time.time()})
        if entry.baseline_id is not None and entry.baseline_id not in self.results:
            self._ended[trial] = end
            return
        self._give_out(self._result(entry, end))
        for follower, waiting in list(self._ended.items()):
            if self.ledger.entries[follower].baseline_id == trial:
                del self._ended[follower]
                self._give_out(self._result(self.ledger.entries[follower], waiting))

    def _result(self, entry: Entry, end: _End) -> TrialResult:
        result = self.ledger.result(entry, end.status, end.error, **end.times)
        result = replace(result, metrics={**result.metrics, **end.metrics})
        if end.status == "stopped":
            line = {"judged_by": self._judged_by, "trial": result.to_json(curves=True)}
            append_line(self.folder / STOPPED, json.dumps(line))
        return result

    def _give_out(self, result: TrialResult) -> None:
        self.results[result.id] = result
        self.listener.trial_done(result)
        self._tell(result)

    def _tell(self, result: TrialResult) -> None:
        names = [metric_of(metric) for metric, _ in self.spec.objectives]
        known = result.status in ("done", "stopped") and all(name in result.metrics for name in names)
        for ticket in self._tickets.pop(result.id, []):
            self.source.tell(ticket, [result.metrics[name] for name in names] if known else None)

    def _read_stopped(self) -> dict[str, TrialResult]:
        file = self.folder / STOPPED
        found = {}
        for line in file.read_text().splitlines() if file.exists() else []:
            try:
                value = json.loads(line)
                result = TrialResult.from_json(value["trial"])
            except (ValueError, KeyError, TypeError):  # the line that a killed driver was writing
                continue
            if value.get("judged_by") == self._judged_by:
                found[result.id] = result
        return found


def _prefixed(report: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in report.items() if name.startswith(prefix)}

"""The driver: knows every trial of a sweep, answers from the store what it can, releases the rest to Tune."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Protocol, cast

from bdtune.config.trial import spec_to_dict
from bdtune.engine.files import append_line
from bdtune.engine.frontier import Frontier, Work
from bdtune.engine.plan import Costs
from bdtune.engine.results import TrialResult

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bdtune.cluster.proposer import Proposer
    from bdtune.config.ledger import Entry, Ledger
    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.execute import Executor
    from bdtune.engine.frontier import Settled
    from bdtune.engine.results import Status
    from bdtune.engine.stage import Node

STOPPED = "stopped.jsonl"
"""Trials that a scheduler stopped, in the sweep's folder: they stay stopped when the sweep is resumed."""


class Listener(Protocol):
    """What is told of a sweep while it runs."""

    def trial_done(self, result: TrialResult) -> None:
        """A trial ended, in whatever way."""

    def held(self, count: int) -> None:
        """So many trials wait for a stage that another one computes."""


class Driver:
    """All trials of one sweep, from the first question to the last result.

    `slots` bounds how many adaptive trials are open at once. A trial's result is given out when that of its
    undefended twin is there, as it is compared with it.
    """

    def __init__(
        self,
        spec: SweepSpec,
        ledger: Ledger,
        executor: Executor,
        proposer: Proposer,
        listener: Listener,
        *,
        folder: Path,
        retry_failed: bool = False,
    ) -> None:
        self.spec, self.ledger, self.executor = spec, ledger, executor
        self.proposer, self.listener = proposer, listener
        self.folder, self.retry_failed = folder, retry_failed
        self.slots = 1
        self.results: dict[str, TrialResult] = {}
        costs = Costs(executor.store)
        self.frontier = Frontier(executor, lambda node: costs.seconds(node) or 1.0)
        self._exhausted = False
        self._tickets: dict[str, list[int]] = defaultdict(list)
        self._ended: dict[str, TrialResult] = {}  # results that wait for their twin's
        self._enqueued: set[str] = set()
        self._retried: set[str] = set()
        self._started: dict[str, float] = {}
        self._stopped = self._read_stopped()

    def answer(self) -> None:
        """Ask for trials and settle what the store answers, until one must be released or all are settled."""
        while not self.frontier.waiting and self._ask():
            self._settle()
        if not self.proposer.adaptive:
            while self._ask():
                pass
        self._settle()

    @property
    def finished(self) -> bool:
        """Whether no trial will be released any more."""
        return self._exhausted and self.frontier.waiting == 0

    def release(self) -> tuple[str, dict[str, Any]] | None:
        """Return the next trial's id and configuration, or None when all are better held back."""
        while True:
            work = self.frontier.take()
            self._settle()
            self.listener.held(self.frontier.held_back)
            if work is not None:
                self._started[work.id] = time.time()
                return work.id, self._config(work.id)
            if len(self._tickets) >= self.slots or not self._ask():
                return None

    def ended(self, trial: str, report: Mapping[str, Any] | None) -> None:
        """Note a released trial's last report; None when its process died too often."""
        self.frontier.done(trial)
        if report is None:
            self._finish(trial, "failed", "its process died; the machine may have run out of memory")
        elif report["status"] == "running":  # the scheduler ended it, not the trial itself
            self._finish(trial, "stopped", metrics=_prefixed(report, "metrics/"))
        else:
            self._finish(trial, cast("Status", report["status"]), report.get("error"))
        self._settle()

    def _ask(self) -> bool:
        """Take in the next proposed trial; returns whether there was one."""
        asked = None if self._exhausted else self.proposer.ask()
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
        twin = self.ledger.twin(entry)
        if twin is not None:
            self._enqueue(twin)
        if entry.id in self._stopped:
            self._give_out(self._stopped[entry.id])
            return
        self.executor.made_for = f"{self.ledger.sweep}/{entry.id}"
        self.frontier.add(Work(entry.id, entry.graph.goals, self._first(entry)))

    def _first(self, entry: Entry) -> list[Node]:
        """Early judgement compares with the undefended twin, so its numbers must be there."""
        twin = self.ledger.twin(entry)
        return twin.graph.goals if twin is not None and self._judged(entry) else []

    def _judged(self, entry: Entry) -> bool:
        return self.spec.scheduler.name != "none" and not entry.is_reference

    def _config(self, trial: str) -> dict[str, Any]:
        entry = self.ledger.entries[trial]
        return {"trial": trial, "spec": spec_to_dict(entry.spec), "judged": self._judged(entry)}

    def _settle(self) -> None:
        for settled in self.frontier.settled():
            if settled.failure is None:
                self._finish(settled.work.id, "done")
            elif not self._retry(settled):
                self._finish(settled.work.id, settled.failure.status, str(settled.failure))

    def _retry(self, settled: Settled) -> bool:
        """Forget an earlier sweep's failure and put the trial back, once, when asked to."""
        assert settled.failure is not None
        key = settled.failure.key
        if not self.retry_failed or settled.work.id in self._retried or settled.work.id in self._started:
            return False
        self._retried.add(settled.work.id)
        self.executor.store.forget_failure(key)
        self.frontier.add(settled.work)
        return True

    def _finish(
        self,
        trial: str,
        status: Status,
        error: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        entry = self.ledger.entries[trial]
        times = {"started": self._started.get(trial), "ended": time.time()} if trial in self._started else {}
        result = self.ledger.result(entry, status, error, **times)
        if metrics:
            result = TrialResult(**{**vars(result), "metrics": {**result.metrics, **metrics}})
        if status == "stopped":
            append_line(self.folder / STOPPED, json.dumps(result.to_json()))
        if entry.reference is None or entry.reference in self.results:
            self._give_out(result)
        else:
            self._ended[trial] = result
        if entry.is_reference or trial in self.results:
            self._give_out_followers(trial)

    def _give_out_followers(self, twin: str) -> None:
        for trial, result in list(self._ended.items()):
            entry = self.ledger.entries[trial]
            if entry.reference == twin:
                del self._ended[trial]
                times = {"started": result.started, "ended": result.ended}
                self._give_out(self.ledger.result(entry, result.status, result.error, **times))

    def _give_out(self, result: TrialResult) -> None:
        self.results[result.id] = result
        self.listener.trial_done(result)
        self._tell(result)

    def _tell(self, result: TrialResult) -> None:
        names = [metric.removeprefix("oracle_") for metric, _ in self.spec.objectives]
        known = result.status in ("done", "stopped") and all(name in result.metrics for name in names)
        for ticket in self._tickets.pop(result.id, []):
            self.proposer.tell(ticket, [result.metrics[name] for name in names] if known else None)

    def _read_stopped(self) -> dict[str, TrialResult]:
        file = self.folder / STOPPED
        found = {}
        for line in file.read_text().splitlines() if file.exists() else []:
            try:
                result = TrialResult.from_json(json.loads(line))
            except ValueError:  # the line that a killed driver was writing
                continue
            found[result.id] = result
        return found


def _prefixed(report: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in report.items() if name.startswith(prefix)}

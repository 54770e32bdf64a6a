"""The trials of a sweep with their graphs, each once, and the baseline of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from bdtune.config.trial import TrialSpec, trial_id
from bdtune.engine.plan import Guess, Plan, make_plan, no_guess
from bdtune.reading.resident import must_stream
from bdtune.trials.graph import TrialGraph, trial_graph
from bdtune.trials.outcome import result_of

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from bdtune.engine.resolve import Resolver
    from bdtune.trials.results import Status, TrialResult


@dataclass
class Entry:
    """One trial."""

    id: str
    spec: TrialSpec
    is_baseline: bool
    """Whether it is there only to be compared with."""
    baseline_id: str | None = None
    """Id of its baseline."""

    @cached_property
    def graph(self) -> TrialGraph:
        """The trial's graph."""
        return trial_graph(self.spec)


@dataclass
class Ledger:
    """All trials by id, baselines before the trials that need them."""

    sweep: str
    resolver: Resolver
    device: Literal["cpu", "cuda"] | None = None
    """Where trials will compute whose numerics leave it open; None: on this machine's best device."""
    entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, spec: TrialSpec, *, is_baseline: bool = False) -> Entry:
        """Take in a trial and its baseline; one that is there already is returned as it is.

        Device, precision and pipeline become explicit here: they are part of keys.
        """
        stream = must_stream(spec.dataset, "train", spec.data_root, spec.pipeline)
        numerics = spec.numerics.resolved(self.device)
        pipeline = "stream" if stream else "resident"
        spec = spec.model_copy(update={"numerics": numerics, "pipeline": pipeline})
        identity = trial_id(spec)
        known = self.entries.get(identity)
        if known is not None:
            known.is_baseline = known.is_baseline and is_baseline
            return known
        entry = Entry(identity, spec, is_baseline)
        if entry.graph.baseline is not None:
            entry.baseline_id = self.add(entry.graph.baseline, is_baseline=True).id
        self.entries[identity] = entry
        return entry

    def extend(self, specs: Iterable[TrialSpec]) -> None:
        """Take in several trials."""
        for spec in specs:
            self.add(spec)

    def baseline(self, entry: Entry) -> Entry | None:
        """Return the baseline of a trial."""
        return self.entries[entry.baseline_id] if entry.baseline_id else None

    def plan(self, guess: Guess = no_guess, *, without: Container[str] = ()) -> Plan:
        """Return what the trials need, what exists, and what sharing saves; `without` those of some ids.

        `guess` gives the seconds of stages that the store knows nothing of.
        """
        entries = [entry for entry in list(self.entries.values()) if entry.id not in without]
        baselines = sum(entry.is_baseline for entry in entries)
        return make_plan((entry.graph.goals for entry in entries), baselines, self.resolver, guess)

    def result(
        self, entry: Entry, status: Status | None = None, error: str | None = None, **times: float | None
    ) -> TrialResult:
        """Return the record of a trial; unless given, its status is what the store says."""
        baseline = self.baseline(entry)
        if status is None:
            status = self._stored_status(entry)
        return result_of(
            entry,
            self.resolver,
            sweep=self.sweep,
            status=status,
            baseline=baseline.graph if baseline else None,
            error=error,
            **times,
        )

    def _stored_status(self, entry: Entry) -> Status:
        return "done" if all(self.resolver.manifest(node) for node in entry.graph.goals) else "pending"

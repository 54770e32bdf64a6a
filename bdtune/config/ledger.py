"""The trials of a sweep with their graphs, each once, and the baseline of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from bdtune.config.graph import TrialGraph, trial_graph
from bdtune.config.outcome import result_of
from bdtune.config.trial import TrialSpec, trial_id
from bdtune.engine.plan import Plan, make_plan
from bdtune.reading.resident import must_stream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bdtune.engine.resolve import Resolver
    from bdtune.engine.results import Status, TrialResult


@dataclass
class Entry:
    """One trial."""

    id: str
    spec: TrialSpec
    is_reference: bool
    """Whether it is there only to be compared with."""
    reference: str | None = None
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

    def add(self, spec: TrialSpec, *, is_reference: bool = False) -> Entry:
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
            known.is_reference = known.is_reference and is_reference
            return known
        entry = Entry(identity, spec, is_reference)
        if entry.graph.reference is not None:
            entry.reference = self.add(entry.graph.reference, is_reference=True).id
        self.entries[identity] = entry
        return entry

    def extend(self, specs: Iterable[TrialSpec]) -> None:
        """Take in several trials."""
        for spec in specs:
            self.add(spec)

    def baseline(self, entry: Entry) -> Entry | None:
        """Return the baseline of a trial."""
        return self.entries[entry.reference] if entry.reference else None

    def plan(self) -> Plan:
        """Return what the trials need, what exists, and what sharing saves."""
        references = sum(entry.is_reference for entry in self.entries.values())
        return make_plan((entry.graph.goals for entry in self.entries.values()), references, self.resolver)

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
            reference=baseline.graph if baseline else None,
            error=error,
            **times,
        )

    def _stored_status(self, entry: Entry) -> Status:
        return "done" if all(self.resolver.manifest(node) for node in entry.graph.goals) else "pending"

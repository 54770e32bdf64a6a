"""The trials of a sweep with their graphs, each once, and the baseline of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from bdtune.config.trial import TrialSpec, build, section_text, sections_of, trial_id
from bdtune.engine.plan import Guess, Plan, make_plan, no_guess
from bdtune.engine.shared import Shared
from bdtune.engine.uncollected import uncollected
from bdtune.reading.resident import must_stream
from bdtune.trials.chain import CLASSIFIER
from bdtune.trials.graph import Graphs
from bdtune.trials.outcome import Facts, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from pathlib import Path

    from bdtune.engine.node import Node
    from bdtune.engine.resolve import Resolver
    from bdtune.plugins.dataset import Dataset
    from bdtune.reading.resident import Pipeline
    from bdtune.trials.graph import TrialGraph
    from bdtune.trials.results import Status, TrialResult


@dataclass(slots=True)
class Entry:
    """One trial."""

    id: str
    spec: TrialSpec
    graph: TrialGraph
    is_baseline: bool
    """Whether it is there only to be compared with."""
    baseline_id: str | None = None
    """Id of its baseline."""


@dataclass
class Ledger:
    """All trials by id, baselines before the trials that need them."""

    sweep: str
    resolver: Resolver
    device: Literal["cpu", "cuda"] | None = None
    """Where trials will compute whose numerics leave it open; None: on this machine's best device."""
    entries: dict[str, Entry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._graphs = Graphs()
        self._facts = Facts()
        self._texts = Shared(section_text)
        self._numerics = Shared(lambda numerics: numerics.resolved(self.device))
        self._pipelines = Shared(_pipeline)
        self._baselines = Shared(lambda spec: self.add(spec, is_baseline=True).id)

    def add(self, spec: TrialSpec, *, is_baseline: bool = False) -> Entry:
        """Take in a trial and its baseline; one that is there already is returned as it is.

        Device, precision and pipeline become explicit here: they are part of keys.
        """
        spec = self._explicit(spec)
        identity = trial_id(spec, self._texts)
        known = self.entries.get(identity)
        if known is not None:
            known.is_baseline = known.is_baseline and is_baseline
            return known
        graph = self._graphs.of(spec)
        baseline = None if graph.baseline is None else self._baselines(graph.baseline)
        entry = Entry(identity, spec, graph, is_baseline, baseline)
        self.entries[identity] = entry
        return entry

    def _explicit(self, spec: TrialSpec) -> TrialSpec:
        """Return a trial with its device, precision and pipeline as they will be."""
        numerics = self._numerics(spec.numerics)
        pipeline = self._pipelines(spec.dataset, spec.data_root, spec.pipeline)
        return build({**sections_of(spec), "numerics": numerics, "pipeline": pipeline})

    @uncollected()
    def extend(self, specs: Iterable[TrialSpec]) -> None:
        """Take in several trials."""
        for spec in specs:
            self.add(spec)

    def baseline(self, entry: Entry) -> Entry | None:
        """Return the baseline of a trial."""
        return self.entries[entry.baseline_id] if entry.baseline_id else None

    def plan(
        self,
        guess: Guess = no_guess,
        *,
        weigh: Callable[[Node], int | None] = no_guess,
        without: Container[str] = (),
    ) -> Plan:
        """Return what the trials need, what exists, and what sharing saves; `without` those of some ids.

        `guess` gives the seconds of stages that the store knows nothing of, `weigh` the bytes of classifiers.
        """
        entries = [entry for entry in list(self.entries.values()) if entry.id not in without]
        baselines = sum(entry.is_baseline for entry in entries)
        undefended = {entry.graph.chain[CLASSIFIER].recipe for entry in entries if entry.is_baseline}
        leaves = {entry.graph.chain[CLASSIFIER].recipe for entry in entries} - undefended
        goals = (entry.graph.goals for entry in entries)
        return make_plan(goals, baselines, self.resolver, guess, leaves=leaves, weigh=weigh)

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
            facts=self._facts,
            **times,
        )

    def _stored_status(self, entry: Entry) -> Status:
        return "done" if all(self.resolver.manifest(node) for node in entry.graph.goals) else "pending"


def _pipeline(dataset: Dataset, root: Path | None, asked: Pipeline) -> str:
    return "stream" if must_stream(dataset, "train", root, asked) else "resident"

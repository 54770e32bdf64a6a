"""What became of trials: their metrics, stages and costs, read from the store and nowhere else.

So a resumed sweep, a report and another machine on the same store all report the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.config.trial import section_params, to_params
from bdtune.engine.remarks import MICRO_BATCH
from bdtune.engine.shared import Shared
from bdtune.engine.store import CURVE
from bdtune.errors import UserError
from bdtune.metrics import defined
from bdtune.plugins.metric import SELECT, SELECT_CLEAN, compared
from bdtune.plugins.poison_plan import Role
from bdtune.reading.resident import InProcess
from bdtune.training.evaluate import Evaluate
from bdtune.trials.oracle import oracle_knobs, section_reads
from bdtune.trials.results import DataUse, StageUse, TrialResult

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from bdtune.engine.execute import Executor
    from bdtune.engine.resolve import Resolver
    from bdtune.engine.stage import Artefact, Inputs
    from bdtune.engine.store import Store
    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.poisoning.train_sources import TruthSource
    from bdtune.trials.graph import TrialGraph
    from bdtune.trials.ledger import Entry
    from bdtune.trials.results import Status

COUNTS = ("n_clean", "n_triggered", SELECT, SELECT_CLEAN, MICRO_BATCH)
"""What an evaluation's info holds besides metrics."""


def trial_metrics(
    evaluated: Mapping[str, Any], baseline: Mapping[str, Any] | None = None, **diagnosed: float
) -> dict[str, float]:
    """Return a trial's metrics: its own, those of its baseline, and how they compare."""
    found = {name: value for name, value in evaluated.items() if name not in COUNTS}
    return {**found, **(defined(compared(evaluated, baseline)) if baseline else {}), **diagnosed}


def judge_tick(
    executor: Executor, graph: TrialGraph, classifier: Artefact, test_sets: Inputs, wanted: Collection[str]
) -> dict[str, float]:
    """Return the metrics of a classifier that is still being trained.

    `test_sets` holds the evaluation's other inputs, as `executor.inputs_but` loads them; `wanted` names the
    metrics that decide. An attack on the classifier costs as much as an epoch may: it is made only for them.
    """
    node = graph.evaluate
    if isinstance(node.stage, Evaluate):
        node = replace(node, stage=node.stage.for_ticks(wanted))
    evaluated = executor.run_with(node, {**test_sets, "classifier": classifier}).info
    return trial_metrics(evaluated, _info_of_baseline(graph, executor.resolver))


def _info_of_baseline(graph: TrialGraph, resolver: Resolver) -> Mapping[str, float] | None:
    from bdtune.trials.graph import trial_graph

    if graph.baseline is None:
        return None
    manifest = resolver.manifest(trial_graph(graph.baseline).evaluate)
    return manifest.info if manifest is not None else None


def stored_metrics(graph: TrialGraph, baseline: TrialGraph | None, resolver: Resolver) -> dict[str, float]:
    """Return the metrics that the store knows of a trial; empty before it is evaluated."""
    evaluated = resolver.manifest(graph.evaluate)
    if evaluated is None:
        return {}
    stored = resolver.manifest(baseline.evaluate) if baseline is not None else None
    diagnosed = resolver.manifest(graph.diagnose) if graph.diagnose is not None else None
    return trial_metrics(
        evaluated.info, stored.info if stored else None, **(diagnosed.info if diagnosed else {})
    )


class Facts:
    """What the records of many trials have in common, worked out once: their settings and data."""

    def __init__(self) -> None:
        self.params = Shared(section_params)
        self.reads = Shared(section_reads)
        self.data = Shared(_data_use)


def result_of(
    entry: Entry,
    resolver: Resolver,
    *,
    sweep: str,
    status: Status,
    baseline: TrialGraph | None = None,
    error: str | None = None,
    facts: Facts | None = None,
    **times: float | None,
) -> TrialResult:
    """Return the record of a trial as the store has it now; `facts` are those of the trials around it."""
    spec, graph, facts = entry.spec, entry.graph, facts or Facts()
    stages, curves = _stages(graph, resolver, f"{sweep}/{entry.id}")
    return TrialResult(
        id=entry.id,
        status=status,
        params=to_params(spec, facts.params),
        metrics=stored_metrics(entry.graph, baseline, resolver),
        stages=stages,
        error=error,
        is_baseline=entry.is_baseline,
        baseline_id=entry.baseline_id,
        asr_band=spec.attack.asr_band if spec.attack else None,
        epochs=entry.graph.budget,
        undefended_epochs=baseline.budget if baseline else None,
        data=facts.data(spec.dataset, spec.attack, graph.data_digest, graph.truth),
        curves=curves,
        oracle=oracle_knobs(spec, facts.reads),
        **times,
    )


def _data_use(dataset: Dataset, attack: Attack | None, digest: str, truth: TruthSource | None) -> DataUse:
    stamped = f" + {attack.plugin_name()}" if attack else ""
    known = DataUse(f"{dataset.plugin_name()}{stamped}", digest)
    return known if truth is None else replace(known, **_counts(truth))


@lru_cache(maxsize=1024)
def _counts(truth: TruthSource) -> dict[str, Any]:
    try:
        role = truth.load(InProcess(truth.root), {}).role
        clean = truth.parts(truth.dataset.labels("train", truth.root)).clean
    except UserError:  # a report of results whose data set is not on this machine
        return {}
    poisoned, covered = (int(np.count_nonzero(role == kind)) for kind in (Role.POISON, Role.COVER))
    return {"samples": len(role), "poisoned": poisoned, "covered": covered, "clean": len(clean)}


def _stages(graph: TrialGraph, resolver: Resolver, owner: str) -> tuple[dict[str, StageUse], Curves]:
    """Return what a trial's stages cost, by role, as far as the store has them, and the curves of its own.

    Those of shared stages belong to the trials that computed them.
    """
    uses: dict[str, StageUse] = {}
    roles, nodes = graph.roles, graph.stages.items()
    manifests = {recipe: found for recipe, node in nodes if (found := resolver.manifest(node)) is not None}
    here = {found.key for found in manifests.values() if found.made_for == owner}
    for recipe, node in nodes:
        if (manifest := manifests.get(recipe)) is None:
            continue
        computed, cost = manifest.made_for == owner, manifest.cost
        before = {parent.recipe for parent in node.parents} & manifests.keys() if computed else ()
        others = {found.key: found.size for each in before if (found := manifests[each]).key not in here}
        here |= others.keys()
        uses[roles[recipe]] = StageUse(
            manifest.key,
            computed,
            round(cost.seconds, 4),
            manifest.size,
            sum(others.values()),
            cost.fetched_bytes if computed else 0,
            cost.served_bytes if computed else 0,
        )
    own = {recipe: found for recipe, found in manifests.items() if found.made_for == owner}
    drawn = {roles[recipe]: found.key for recipe, found in own.items() if CURVE in found.files}
    return uses, Curves(resolver.store, drawn)


class Curves(Mapping[str, list[dict[str, float]]]):
    """A trial's curves by role; each is read from the store when it is looked at, as a table needs none."""

    def __init__(self, store: Store, keys: Mapping[str, str]) -> None:
        self._store, self._keys = store, keys
        self._read: dict[str, list[dict[str, float]]] = {}

    def __getitem__(self, role: str) -> list[dict[str, float]]:
        if role not in self._read:
            self._read[role] = self._store.curve(self._keys[role])
        return self._read[role]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def with_all_curves(trial: TrialResult, store: Store) -> TrialResult:
    """Return a trial's record with the curves of all its stages, as far as the store has them."""
    curves = {role: store.curve(use.key) for role, use in trial.stages.items()}
    return replace(trial, curves={role: rows for role, rows in curves.items() if rows})

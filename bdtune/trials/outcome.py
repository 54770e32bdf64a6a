"""What became of trials: their metrics, stages and costs, read from the store and nowhere else.

So a resumed sweep, a report and another machine on the same store all report the same.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.config.trial import to_params
from bdtune.engine.store import CURVE
from bdtune.errors import UserError
from bdtune.metrics import defined
from bdtune.plugins.metric import SELECT, SELECT_CLEAN, compared
from bdtune.plugins.poison_plan import Role
from bdtune.reading.resident import InProcess
from bdtune.training.evaluate import Evaluate
from bdtune.trials.oracle import oracle_knobs
from bdtune.trials.results import DataUse, StageUse, TrialResult

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from bdtune.engine.execute import Executor
    from bdtune.engine.resolve import Resolver
    from bdtune.engine.stage import Artefact, Inputs
    from bdtune.engine.store import Store
    from bdtune.poisoning.sources import TruthSource
    from bdtune.trials.graph import TrialGraph
    from bdtune.trials.ledger import Entry
    from bdtune.trials.results import Status

COUNTS = ("n_clean", "n_triggered", SELECT, SELECT_CLEAN)
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


def result_of(
    entry: Entry,
    resolver: Resolver,
    *,
    sweep: str,
    status: Status,
    baseline: TrialGraph | None = None,
    error: str | None = None,
    **times: float | None,
) -> TrialResult:
    """Return the record of a trial as the store has it now."""
    spec = entry.spec
    return TrialResult(
        id=entry.id,
        status=status,
        params=to_params(spec),
        metrics=stored_metrics(entry.graph, baseline, resolver),
        stages=_stages(entry, resolver, f"{sweep}/{entry.id}"),
        error=error,
        is_baseline=entry.is_baseline,
        baseline_id=entry.baseline_id,
        asr_band=spec.attack.asr_band if spec.attack else None,
        epochs=entry.graph.budget,
        undefended_epochs=baseline.budget if baseline else None,
        data=_data_use(entry),
        curves=_curves(entry, resolver, f"{sweep}/{entry.id}"),
        oracle=oracle_knobs(spec),
        **times,
    )


def _data_use(entry: Entry) -> DataUse:
    spec, truth = entry.spec, entry.graph.truth
    attack = f" + {spec.attack.plugin_name()}" if spec.attack else ""
    known = DataUse(f"{spec.dataset.plugin_name()}{attack}", entry.graph.data_digest)
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


def _stages(entry: Entry, resolver: Resolver, owner: str) -> dict[str, StageUse]:
    uses: dict[str, StageUse] = {}
    roles = entry.graph.roles
    for node in entry.graph.stages.values():
        manifest = resolver.manifest(node)
        if manifest is not None:
            computed = manifest.made_for == owner
            uses[roles[node.recipe]] = StageUse(manifest.key, computed, round(manifest.cost.seconds, 4))
    return uses


def _curves(entry: Entry, resolver: Resolver, owner: str) -> dict[str, list[dict[str, Any]]]:
    """Return the curves of what the trial computed itself: those of shared stages belong to others."""
    curves = {}
    roles = entry.graph.roles
    for node in entry.graph.stages.values():
        manifest = resolver.manifest(node)
        if manifest is not None and manifest.made_for == owner and CURVE in manifest.files:
            curves[roles[node.recipe]] = resolver.store.curve(manifest.key)
    return curves


def with_all_curves(trial: TrialResult, store: Store) -> TrialResult:
    """Return a trial's record with the curves of all its stages, as far as the store has them."""
    curves = {role: store.curve(use.key) for role, use in trial.stages.items()}
    return replace(trial, curves={role: rows for role, rows in curves.items() if rows})

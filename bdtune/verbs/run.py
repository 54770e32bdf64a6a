"""`bdtune run`: one trial and its baseline in this process, without ray or mlflow."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import yaml

from bdtune.config.load import load_trial
from bdtune.config.trial import spec_to_dict
from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.files import replace_file
from bdtune.engine.hardware import free_cached
from bdtune.reading.resident import InProcess
from bdtune.report.estimate import Estimate
from bdtune.report.live import Progress
from bdtune.report.names import setting_names
from bdtune.trials.ledger import Ledger
from bdtune.trials.results import SweepResult
from bdtune.trials.speed import Speed
from bdtune.verbs.home import SINGLE, SINGLE_SWEEP
from bdtune.verbs.stores import checked, store_at, to_write

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bdtune.trials.ledger import Entry
    from bdtune.trials.results import TrialResult


def run(
    file: str | None,
    overrides: Sequence[str],
    run_dir: Path,
    *,
    store: str | None = None,
    quiet: bool = False,
) -> SweepResult:
    """Compute one trial, or take it from the store; the result holds its baseline too."""
    spec = load_trial(file, overrides)
    at = checked(store_at(run_dir, store), alone=True)
    executor = Executor(to_write(run_dir, at), InProcess(spec.data_root, spec.pipeline))
    ledger = Ledger(SINGLE_SWEEP, executor.resolver)
    wanted = ledger.add(spec)
    for entry in ledger.entries.values():
        settings = yaml.safe_dump(spec_to_dict(entry.spec), sort_keys=False)
        replace_file(run_dir / SINGLE / f"{entry.id}.yaml", settings.encode())
    speed = Speed(len(os.sched_getaffinity(0)))
    plan = ledger.plan(speed)
    with executor.store.pins.held(), Progress(quiet=quiet, name=setting_names(ledger, [])) as progress:
        progress.planned(
            len(ledger.entries),
            unique=sum(count.unique for count in plan.stages.values()),
            cached=sum(count.cached for count in plan.stages.values()),
            seconds=None if plan.unpredicted else plan.seconds_shared,
        )
        progress.estimate = Estimate(ledger, guess=speed)
        results = []
        for entry in ledger.entries.values():
            results.append(walked(entry, ledger, executor, progress))
            progress.trial_done(results[-1])
    return SweepResult(SINGLE_SWEEP, tuple(results), wanted.id)


def walked(entry: Entry, ledger: Ledger, executor: Executor, progress: Progress) -> TrialResult:
    """Compute what a trial lacks, in this process; returns its result, also where a stage fails."""
    executor.made_for = f"{ledger.sweep}/{entry.id}"
    executor.on_remark = lambda node, text: progress.remarked(entry.id, node.name, text)
    try:
        for event in executor.walk(entry.graph.goals):
            tick = event.tick
            length = event.node.stage.length()
            progress.stage(entry.id, event.node.name, tick.epoch if tick else 0, length)
    except StageFailed as failure:
        free_cached()
        stored = executor.store.failure(failure.key)
        traced = stored is not None and failure.status == "failed" and stored.traceback
        trace = f"\n{traced}" if traced else ""
        return ledger.result(entry, failure.status, f"{failure}{trace}")
    return ledger.result(entry)

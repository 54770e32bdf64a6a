"""`bdtune sweep` and `bdtune plan`."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Literal

import typer

from bdtune.cluster.session import check_answers
from bdtune.cluster.sweep import Options, make_ledger, planned_trials, run_sweep
from bdtune.config.load import load_sweep
from bdtune.config.trial import to_params
from bdtune.errors import UserError
from bdtune.report import table
from bdtune.report.estimate import Estimate
from bdtune.report.live import Progress
from bdtune.report.names import setting_names
from bdtune.tracking import values
from bdtune.tracking.mlflow_log import Tracker
from bdtune.trials.ledger import Ledger
from bdtune.trials.oracle import oracle_knobs, oracle_reads
from bdtune.trials.speed import speed_of
from bdtune.trials.sweep_folder import (
    ASKED,
    SETTINGS,
    NameTakenError,
    Place,
    claim,
    find_place,
    release,
    varied,
)
from bdtune.verbs.pictures import Gallery
from bdtune.verbs.stores import checked, store_for, to_read, to_write
from bdtune.verbs.sweep_report import SweepOutcome, reported
from bdtune.verbs.watching import Recorder, Screen
from bdtune.verbs.weights import Judged, Weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bdtune.config.load import Named
    from bdtune.config.sweep import Resources, SweepSpec
    from bdtune.engine.plan import Plan
    from bdtune.trials.results import OracleRead, SweepResult
    from bdtune.trials.speed import Speed

PREVIEWED = 50
"""Trials drawn from a search's space to say what it may cost."""


def plan(
    file: Named | None, overrides: Sequence[str], run_dir: Path, *, store: str | None = None
) -> tuple[SweepSpec, Plan]:
    """Load a sweep, under the name that it would get, and count what it needs; writes nothing.

    Trials of data sets that are not there are left out; `SweepSpec.absent` lists these.
    """
    spec = load_sweep(file, overrides, partial=True)
    place = find_place(run_dir, spec)
    if place.line():
        print(place.line(), file=sys.stderr)
    spec = spec.model_copy(update={"name": place.name})
    at = store_for(run_dir, [place.folder] if place.known else [], store)
    ledger, _ = make_ledger(spec, to_read(at))
    return spec, _plan(spec, ledger, speed_of(spec.resources, spec.speed))


def _plan(spec: SweepSpec, ledger: Ledger, speed: Speed) -> Plan:
    """Enter a sweep's trials into an empty ledger and plan them; of a search, a sample of its space."""
    if spec.search is not None:
        ledger = Ledger(ledger.sweep, ledger.resolver, ledger.device)  # a search enters what it asks for
    ledger.extend(planned_trials(spec, PREVIEWED))
    return ledger.plan(speed, weigh=speed.weight_bytes)


def _estimate(spec: SweepSpec, ledger: Ledger, speed: Speed, expected: Plan, options: Options) -> Estimate:
    """Return what says how long the rest of a sweep takes; of a search, trials like those of its plan."""
    count = spec.search.trials if spec.search is not None else 0
    each = expected.seconds_shared / max(1, expected.trials)
    slots = slots_of(spec.resources, options)
    return Estimate(ledger, slots, guess=speed, unasked=lambda asked: each * max(0, count - asked))


def announce(progress: Progress, expected: Plan) -> None:
    """Say what is to come."""
    counts = expected.stages.values()
    progress.planned(
        expected.trials + expected.baselines,
        unique=sum(count.unique for count in counts),
        cached=sum(count.cached for count in counts),
        seconds=None if expected.unpredicted else expected.seconds_shared,
    )


def slots_of(resources: Resources, options: Options) -> int:
    """Return how many trials run at a time, at least."""
    cpus = options.cpus or len(os.sched_getaffinity(0))
    slots = max(1, int(cpus / resources.cpu)) if options.address is None else 1
    return min(slots, options.concurrency or slots)


def make_tracker(
    run_dir: Path, folder: Path, spec: SweepSpec, tags: Mapping[str, str] | None = None
) -> Tracker:
    """Return what records a sweep for MLflow; `tags` are further ones of its own run."""
    return Tracker(
        run_dir,
        spec.name,
        axes=varied(folder, spec),
        params=to_params(spec.trial),
        tags={"bdtune.oracle": values.oracle_tag(oracle_reads(spec, _knobs(spec))), **(tags or {})},
        artifacts=[
            (folder / SETTINGS, ""),
            *((file, ASKED) for file in sorted((folder / ASKED).glob("*.yaml"))),
        ],
    )


def sweep(
    file: Named | None,
    overrides: Sequence[str],
    run_dir: Path,
    options: Options,
    *,
    store: str | None = None,
    quiet: bool = False,
    wait_s: float = 30.0,
) -> SweepOutcome:
    """Run a sweep to its end, or go on with it, or extend it; leaves its report beside it.

    What MLflow has not taken within `wait_s` seconds of the end is left to `bdtune sync`.
    Raises `NameTakenError` where the command line gives a name that another sweep has.
    """
    spec = load_sweep(file, overrides)
    if options.address is not None:
        check_answers(options.address)  # before anything is written
    known = find_place(run_dir, spec)
    at = checked(store_for(run_dir, [known.folder] if known.known else [], store))
    place = _claimed(run_dir, spec, overrides, at)
    folder = place.folder
    spec = spec.model_copy(update={"name": place.name})
    ledger, executor = make_ledger(spec, to_write(run_dir, at))
    tracker = make_tracker(run_dir, folder, spec)
    with Progress(quiet=quiet, name=setting_names(ledger, spec.axis_paths())) as progress:
        if place.line():
            progress.message(place.line(), always=True)
        # Measuring delays the first stage; the first trials soon say as much of those that are to come.
        speed = speed_of(spec.resources, spec.speed, measure=spec.search is not None)
        expected = _plan(spec, ledger, speed)
        progress.estimate = _estimate(spec, ledger, speed, expected, options)
        announce(progress, expected)
        tracker.describe(spec, expected=expected.trials + expected.baselines)
        tracker.start()
        gallery = Gallery(folder / "pictures", executor.resolver)
        recorder = Recorder(tracker, ledger, folder, spec.keep)
        weights = Weights(ledger, [Judged(spec, ledger)])
        try:
            outcome = run_sweep(
                spec,
                folder,
                ledger,
                executor,
                watcher=Screen(progress, [recorder], weights),
                options=options,
            )
        except UserError:  # the machine cannot hold a trial, or there is no such cluster
            recorder.close()
            tracker.abandon()
            if not progress.ended:
                release(place)
            raise
        finally:
            recorder.close()
            if dropped := weights.close():
                progress.message(dropped, always=True)
    result, written = reported(folder, spec, ledger, gallery, outcome.trials)
    end(tracker, spec, result, written, interrupted=outcome.interrupted)
    return SweepOutcome(
        spec,
        result,
        outcome.interrupted,
        outcome.given_up,
        tracker.close(wait_s, say=partial(print, file=sys.stderr)).line(),
        written,
        tuple(outcome.trials),
    )


def end(
    tracker: Tracker, spec: SweepSpec, result: SweepResult, written: Iterable[Path], *, interrupted: bool
) -> None:
    """Record the end of a sweep: its table as the note of its run, and the files of its report."""
    note = table.markdown(table.build(result, paper=spec.published, notes=spec.notes))
    status: Literal["interrupted", "done"] = "interrupted" if interrupted else "done"
    tracker.end(result, status, note=note, artifacts=[(path, "") for path in written])


def _claimed(run_dir: Path, spec: SweepSpec, overrides: Sequence[str], at: Path | str) -> Place:
    """Take the sweep's folder; where the user gave a name that is taken, ask on a terminal."""
    named = any(word.partition("=")[0].strip() == "name" for word in overrides)
    try:
        return claim(run_dir, spec, at, numbered=not named)
    except NameTakenError as taken:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        print(f"{taken.place.line()}", file=sys.stderr)
        if not typer.confirm("Run it?", default=True, err=True):
            raise
    return claim(run_dir, spec, at)


def _knobs(spec: SweepSpec) -> list[OracleRead]:
    """Return what an oracle sets in the trials to come; of a search, in a sample of its space."""
    return [read for trial in planned_trials(spec, PREVIEWED) for read in oracle_knobs(trial)]

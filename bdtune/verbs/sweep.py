"""`bdtune sweep` and `bdtune plan`."""

from __future__ import annotations

import logging
import os
import queue
import re
import sys
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

import typer
import yaml

from bdtune.cluster.session import check_answers
from bdtune.cluster.sweep import Options, make_ledger, planned_trials, run_sweep
from bdtune.config.load import load_sweep
from bdtune.config.trial import spec_to_dict, to_params
from bdtune.engine.files import file_lock, replace_file
from bdtune.errors import UserError
from bdtune.report import cross, files, table
from bdtune.report.estimate import Estimate
from bdtune.report.groups import grouped
from bdtune.report.live import Progress
from bdtune.report.names import setting_names
from bdtune.report.order import blocks
from bdtune.report.selection import cases, selected
from bdtune.tracking import values
from bdtune.tracking.mlflow_log import Tracker
from bdtune.trials.ledger import Ledger
from bdtune.trials.oracle import oracle_knobs, oracle_reads
from bdtune.trials.speed import speed_of
from bdtune.trials.sweep_folder import (
    ASKED,
    SETTINGS,
    STORE,
    NameTakenError,
    Place,
    claim,
    find_place,
    release,
    store_of,
    varied,
)
from bdtune.verbs.ending import closing_lines, exit_code
from bdtune.verbs.home import find_sweep, settings_of
from bdtune.verbs.kept import kept_files
from bdtune.verbs.pictures import Gallery
from bdtune.verbs.stores import checked, of_sweep, store_for, to_read, to_write
from bdtune.verbs.whole_sweep import whole, without_data

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from bdtune.config.load import Named
    from bdtune.config.sweep import Kept, Resources, SweepSpec
    from bdtune.engine.plan import Plan
    from bdtune.trials.results import OracleRead, SweepResult, TrialResult
    from bdtune.trials.speed import Speed

log = logging.getLogger(__name__)

PREVIEWED = 50
"""Trials drawn from a search's space to say what it may cost."""


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep came to, for the command line to print."""

    spec: SweepSpec
    result: SweepResult
    interrupted: bool = False
    given_up: str | None = None
    """Why some trials were given up without a result, though nothing was wrong with them."""
    tracking: str = ""
    written: Sequence[Path] = ()
    """The files of its report, in its folder."""
    latest: tuple[TrialResult, ...] = ()
    """Results of this run's own trials; an earlier run may have left others."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Why trials were not run, by id, where more is known than that they were not."""
    folder: Path | None = None
    """The sweep's folder, of a report."""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some given up, 3 some failed, 130 interrupted."""
        return exit_code(self.given_up, self.latest, interrupted=self.interrupted)

    def ending(self, out: Path | None) -> list[str]:
        """Return the lines that end a run; `out` is the run directory that the command line gave."""
        commands = ["bdtune ui", f"bdtune report {self.spec.name} --sort asr --top 10"]
        return closing_lines(self, self.written, commands, out)


class Recorder:
    """Reports trials to the tracker, in a thread of its own."""

    def __init__(self, tracker: Tracker, ledger: Ledger, folder: Path, keep: tuple[Kept, ...] = ()) -> None:
        self.tracker, self.ledger, self.folder, self.keep = tracker, ledger, folder, keep
        self._begun: set[str] = set()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="bdtune-recorder", daemon=True)
        self._thread.start()

    def trial_done(self, result: TrialResult) -> None:
        """Take in a finished trial."""
        self._queue.put(partial(self._record, result))

    def began(self, trial: str) -> None:
        """Take in that a trial runs; may be said again."""
        if trial not in self._begun:
            self._begun.add(trial)
            self._queue.put(partial(self._record_start, trial))

    def learned(self, trial: str, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take in a point of a running trial's curves."""
        self._queue.put(partial(self.tracker.learned, trial, role, epoch, metrics))

    def close(self) -> None:
        """Wait until all that was taken in is recorded; may be called again."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    def _record(self, result: TrialResult) -> None:
        entry, into = self.ledger.entries[result.id], self.folder / "kept"
        self.tracker.finished(result, kept_files(entry, self.ledger.resolver, self.keep, into))

    def _record_start(self, trial: str) -> None:
        self.tracker.began(self.ledger.result(self.ledger.entries[trial], "pending"))


class SweepScreen:
    """Passes on what happens in a sweep: to the display and to the recorder."""

    def __init__(self, progress: Progress, recorder: Recorder, folder: Path) -> None:
        self.progress, self.recorder, self.folder = progress, recorder, folder

    def trial_done(self, result: TrialResult) -> None:
        """A trial ended; of one that failed, say how to repeat it in one process."""
        self.progress.trial_done(result)
        self.recorder.trial_done(result)
        if result.status == "failed":
            line = leave_failed(self.folder, self.recorder.ledger, result.id)
            self.progress.message(line, always=True)

    def held(self, count: int) -> None:
        """So many trials wait for others."""
        self.progress.held(count)

    def message(self, text: str) -> None:
        """What the sweep does beside its trials."""
        self.progress.message(text)

    def stage(self, trial: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """A trial is in a stage."""
        self.progress.stage(trial, stage, epoch, epochs)
        self.recorder.began(trial)

    def remarked(self, trial: str, stage: str, text: str) -> None:
        """A trial's stage has something to say."""
        self.progress.remarked(trial, stage, text)

    def learned(self, trial: str, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial's stage has numbers of an epoch."""
        self.recorder.learned(trial, role, epoch, metrics)


def leave_failed(folder: Path, ledger: Ledger, trial: str) -> str:
    """Leave a failed trial's settings in its sweep's folder; returns how to repeat it in one process."""
    file = folder / "failed" / f"{trial}.yaml"
    spec = spec_to_dict(ledger.entries[trial].spec)
    replace_file(file, yaml.safe_dump(spec, sort_keys=False).encode())
    store = f" --store {store_of(folder)}" if (folder / STORE).exists() else ""
    return f"repeat it with: bdtune run {file} --out {folder.parent.parent}{store}"


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
    return ledger.plan(speed)


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
        try:
            outcome = run_sweep(
                spec,
                folder,
                ledger,
                executor,
                watcher=SweepScreen(progress, recorder, folder),
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


def report(name: str, run_dir: Path, *, store: str | None = None, sort: str | None = None) -> SweepOutcome:
    """Return a sweep's report as the store has it now: nothing is computed.

    Raises `UserError` when no such sweep was run, or has nothing called like `sort`.
    """
    folder = find_sweep(name, run_dir)
    spec = settings_of(folder)
    ledger, _ = make_ledger(spec, of_sweep(folder, store))
    if spec.search is not None:
        return SweepOutcome(spec, _result(spec, files.read(folder).trials), folder=folder)
    if os.access(folder, os.W_OK):
        gallery = Gallery(folder / "pictures", ledger.resolver)
        result, _ = reported(folder, spec, ledger, gallery, sort=sort)
    else:
        log.warning("%s cannot be written: the report is printed only", folder)
        result = _whole_result(folder, spec, ledger, sort=sort)
    return SweepOutcome(spec, result, why=without_data(ledger), folder=folder)


def _whole_result(
    folder: Path,
    spec: SweepSpec,
    ledger: Ledger,
    latest: Sequence[TrialResult] = (),
    *,
    sort: str | None = None,
) -> SweepResult:
    """Return all trials of a sweep; raises `UserError` where they have nothing called like `sort`."""
    result = _result(spec, whole(folder, spec, ledger, latest))
    if sort is not None:
        blocks(grouped(result.trials), result, sort)
    return result


def reported(
    folder: Path,
    spec: SweepSpec,
    ledger: Ledger,
    gallery: Gallery,
    latest: Sequence[TrialResult] = (),
    *,
    sort: str | None = None,
) -> tuple[SweepResult, list[Path]]:
    """Write the report of all trials that the sweep was ever asked for; returns it with its files.

    Two runs that end at once do so one after the other, as the second one's report holds the first one's.
    """
    with file_lock(folder / ".report.lock"):
        result = _whole_result(folder, spec, ledger, latest, sort=sort)  # before anything is written
        shaped = _shaped(spec, result, ledger) if spec.table else None
        written = files.write(folder, result, paper=spec.published, notes=spec.notes, shaped=shaped)
        written += _pictures_of_best(result, ledger, gallery, folder)
        if spec.search is not None:
            from bdtune.verbs import search_pictures  # loads optuna

            written += search_pictures.draw(spec, folder)
    return result, written


def _shaped(spec: SweepSpec, result: SweepResult, ledger: Ledger) -> cross.CrossTable:
    return cross.build(result, spec.table, published=spec.published, why=without_data(ledger))


def _pictures_of_best(result: SweepResult, ledger: Ledger, gallery: Gallery, folder: Path) -> list[Path]:
    """Leave the best trials' pictures beside the table; older ones are not about these.

    Where no setting is best, as in a sweep of attacks without a defense, there are pictures of the attacks.
    Where none can be drawn, as of a sweep that was imported without its results, the older ones stay.
    """
    found: list[Path] = []
    for case in cases(grouped(result.trials)):
        best = result.choices.get(case.name)
        first = next((trial.id for group in case.groups for trial in group.done), None)
        kind = "best" if best else "case"
        place = f"{kind}-{re.sub(r'[^A-Za-z0-9.]+', '-', case.name)}" if len(result.by_group) > 1 else kind
        if (trial := best or first) in ledger.entries:
            found += gallery.placed(ledger.entries[trial], folder, place)
    old = {*folder.glob("best-*.png"), *folder.glob("case-*.png")} if found else set()
    for picture in old - set(found):
        picture.unlink(missing_ok=True)
    return found


def table_of(outcome: SweepOutcome, *, sort: str | None = None, top: int | None = None) -> table.Table:
    """Return the table that a person reads; raises `UserError` where there is nothing called like `sort`."""
    spec = outcome.spec
    return table.build(
        outcome.result, paper=spec.published, notes=spec.notes, sort=sort, top=top, limit=files.TERMINAL_ROWS
    )


def _knobs(spec: SweepSpec) -> list[OracleRead]:
    """Return what an oracle sets in the trials to come; of a search, in a sample of its space."""
    return [read for trial in planned_trials(spec, PREVIEWED) for read in oracle_knobs(trial)]


def _result(spec: SweepSpec, trials: Sequence[TrialResult]) -> SweepResult:
    select = spec.select
    oracle = oracle_reads(spec, (read for trial in trials for read in trial.oracle))
    return selected(spec.name, trials, select.metric, select.mode, over=select.over, oracle=oracle)

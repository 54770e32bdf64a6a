"""`bdtune campaign`, and `bdtune plan` and `bdtune report` of one: several sweeps, one driver, one queue."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

import yaml

from bdtune.cluster.session import check_answers
from bdtune.cluster.sweep import Options, make_ledger, run_sweep
from bdtune.cluster.trial_source import ListSource
from bdtune.config.campaign import Campaign, load_campaign, renamed
from bdtune.config.expand import points
from bdtune.config.sweep import SweepSpec
from bdtune.engine.files import replace_file
from bdtune.errors import Problem, UserError
from bdtune.metrics import metric_of
from bdtune.report import comparison, table
from bdtune.report.estimate import Estimate
from bdtune.report.live import Progress
from bdtune.report.names import setting_names
from bdtune.report.ranking import ranking_of
from bdtune.report.selection import rule_title
from bdtune.report.table import duration
from bdtune.tracking.campaign_log import CampaignLog
from bdtune.trials.budget import Spending
from bdtune.trials.ledger import Ledger
from bdtune.trials.speed import Speed
from bdtune.trials.sweep_folder import (
    SETTINGS,
    SWEEPS,
    Place,
    claim,
    find_place,
    note_store,
    release,
)
from bdtune.verbs import sweep as single
from bdtune.verbs.pictures import Gallery
from bdtune.verbs.stores import checked, of_sweep, store_for, to_read, to_write
from bdtune.verbs.tables import counted, plain_table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from bdtune.cluster.sweep import Outcome
    from bdtune.config.at_hand import Absent
    from bdtune.config.load import Named
    from bdtune.config.trial import TrialSpec
    from bdtune.engine.execute import Executor
    from bdtune.engine.plan import Plan
    from bdtune.engine.store import Store
    from bdtune.report.table import Table
    from bdtune.tracking.mlflow_log import Tracker
    from bdtune.trials.results import SweepResult, TrialResult

CAMPAIGN = "campaign.yaml"
"""In the campaign's folder, `sweeps/<name>`: its settings, with every sweep written out."""


@dataclass(frozen=True)
class PlannedSweep:
    """A sweep of a campaign: what it takes alone, and what it adds to the sweeps before it."""

    name: str
    trials: int
    left_out: int
    """Trials that do not fit the budget."""
    stages: int
    """Stages that the store lacks, as a sweep of its own."""
    added_stages: int
    """Those of them that no sweep before it needs."""
    alone_s: float | None
    """Their seconds; None where some stage was never run, and cannot be guessed."""
    added_s: float | None


@dataclass(frozen=True)
class CampaignPlan:
    """What `bdtune plan` prints of a campaign."""

    name: str
    sweeps: tuple[PlannedSweep, ...]
    whole: Plan
    """Of all trials that fit the budget, as of one sweep."""
    left_out: tuple[str, ...]
    """The settings of those that do not."""
    absent: tuple[tuple[str, Absent], ...] = ()
    """Sweeps with trials whose data sets are not there."""

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune plan --json` prints."""
        return {
            "campaign": self.name,
            "sweeps": [vars(sweep) for sweep in self.sweeps],
            "left_out": list(self.left_out),
            "absent": [{"sweep": sweep, **each.to_json()} for sweep, each in self.absent],
            **self.whole.to_json(),
        }


@dataclass(frozen=True)
class Part:
    """A sweep of a campaign that is run: its folder, and what records it."""

    spec: SweepSpec
    place: Place
    ledger: Ledger
    """Its own trials; the campaign's ledger has those of all sweeps."""
    recorder: single.Recorder
    gallery: Gallery

    def own(self, result: TrialResult) -> TrialResult:
        """Return a trial's result as this sweep's: another one may have it as a baseline."""
        return replace(result, is_baseline=self.ledger.entries[result.id].is_baseline)

    def reported(self, outcome: Outcome) -> SweepResult:
        """Write the sweep's report, and its end for MLflow."""
        latest = [self.own(trial) for trial in outcome.trials if trial.id in self.ledger.entries]
        result, written = single.reported(self.place.folder, self.spec, self.ledger, self.gallery, latest)
        single.end(self.recorder.tracker, self.spec, result, written, interrupted=outcome.interrupted)
        return result


@dataclass(frozen=True)
class CampaignOutcome:
    """What a campaign came to, for the command line to print."""

    name: str
    sweeps: Mapping[str, SweepResult]
    left_out: Sequence[str] = ()
    """The settings of trials that did not fit the budget."""
    interrupted: bool = False
    given_up: str | None = None
    tracking: str = ""
    folder: Path | None = None
    latest: tuple[TrialResult, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some given up, 3 some failed, 130 interrupted."""
        return single.exit_code(self.given_up, self.latest, interrupted=self.interrupted)

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune campaign --json` prints."""
        sweeps = {name: result.to_json() for name, result in self.sweeps.items()}
        return {"campaign": self.name, "sweeps": sweeps, "left_out": list(self.left_out)}

    def ending(self) -> list[str]:
        """Return the lines that end a run."""
        written = [f"written to {self.folder}: report.md, and to the folder of each sweep"]
        if self.given_up:
            after = f"error: {self.given_up}\nThe same command goes on from here"
        elif self.interrupted:
            after = "interrupted; the same command goes on from here"
        elif self.exit_code:
            after = "next: mend what failed, then run the same command with --retry-failed"
        else:
            after = f"next: bdtune report {self.name}, or bdtune report {next(iter(self.sweeps))}"
        return [*(written if self.folder else []), *filter(None, [self.tracking]), after]


def plan(file: Named, overrides: Sequence[str], run_dir: Path, *, store: str | None = None) -> CampaignPlan:
    """Load a campaign and count what it needs, without data sets that are not there; writes nothing."""
    campaign = load_campaign(file, overrides, partial=True)
    known = to_read(store_for(run_dir, _begun(run_dir, campaign), store))
    chosen = _choose(campaign, known)
    sweeps = [
        _planned(spec, share, _plan_alone(campaign, spec, known))
        for spec, share in zip(campaign.sweeps, chosen.shares, strict=True)
    ]
    return CampaignPlan(
        campaign.name, tuple(sweeps), chosen.ledger.plan(_speed(campaign)), chosen.left_out, campaign.absent
    )


def plan_table(made: CampaignPlan) -> Table:
    """Return what a campaign needs, sweep by sweep."""
    rows = [
        {
            "sweep": sweep.name,
            "trials": sweep.trials,
            "left out": sweep.left_out,
            "stages": sweep.stages,
            "added": sweep.added_stages,
            "time alone": _length(sweep.alone_s),
            "time added": _length(sweep.added_s),
        }
        for sweep in made.sweeps
    ]
    whole = made.whole
    unique = sum(count.unique for count in whole.stages.values())
    cached = sum(count.cached for count in whole.stages.values())
    every = sum(count.without_sharing for count in whole.stages.values())
    apart = sum(sweep.stages for sweep in made.sweeps)
    notes = [
        f"at most {counted(unique - cached, 'stage')} to compute, {cached} in the store; "
        f"{apart} as sweeps of their own; {every} if nothing were shared"
    ]
    if whole.unpredicted:
        notes.append(f"no cost known yet: {', '.join(whole.unpredicted)}")
    else:
        alone = sum(sweep.alone_s or 0.0 for sweep in made.sweeps)
        notes.append(
            f"about {duration(whole.seconds_shared)} of stages to compute; {duration(alone)} as sweeps of "
            f"their own; {duration(whole.seconds_unshared)} if nothing were shared"
        )
    notes += left_out_lines(made.left_out)
    notes += [f"{sweep}: {each.line()}" for sweep, each in made.absent]
    trials, baselines = counted(whole.trials, "trial"), counted(whole.baselines, "baseline")
    title = f"campaign {made.name}: {counted(len(rows), 'sweep')}, {trials} and {baselines}"
    return plain_table(title, rows, notes)


def run(
    file: str,
    overrides: Sequence[str],
    run_dir: Path,
    options: Options,
    *,
    store: str | None = None,
    quiet: bool = False,
    wait_s: float = 30.0,
) -> CampaignOutcome:
    """Run a campaign to its end, or go on with it; leaves a report beside each sweep and one of all."""
    campaign = load_campaign(file, overrides)
    if options.address is not None:
        check_answers(options.address)  # before anything is written
    folder = _folder(run_dir, campaign.name)
    at = checked(store_for(run_dir, _begun(run_dir, campaign), store))
    chosen = _choose(campaign, to_write(run_dir, at))
    with Progress(quiet=quiet, name=_namer(campaign, chosen.ledger)) as progress:
        _announce(progress, campaign, chosen, options)
        note_store(folder, at, run_dir)
        replace_file(folder / CAMPAIGN, yaml.safe_dump(campaign.to_dict(), sort_keys=False).encode())
        parts = [_part(run_dir, spec, campaign.name, at) for spec in campaign.sweeps]
        try:
            outcome = run_sweep(
                _base(campaign),
                folder,
                chosen.ledger,
                chosen.executor,
                watcher=_Screens(progress, parts),
                options=options,
                source=ListSource(chosen.trials()),
                ranks=_ranks(campaign, chosen.ledger),
            )
        except UserError:  # the machine cannot hold a trial, or there is no such cluster
            for part in parts:
                part.recorder.close()
                part.recorder.tracker.abandon()
                if not progress.ended:
                    release(part.place)
            raise
        finally:
            for part in parts:
                part.recorder.close()
    results = {part.spec.name: part.reported(outcome) for part in parts}
    summary = summary_table(campaign.name, results, chosen.left_out)
    _write_report(folder, summary, campaign, results)
    log = CampaignLog(run_dir, campaign)
    log.end(results, table.markdown(summary), interrupted=outcome.interrupted)
    trackers = [*(part.recorder.tracker for part in parts), log.tracker]
    return CampaignOutcome(
        campaign.name,
        results,
        chosen.left_out,
        outcome.interrupted,
        outcome.given_up,
        _delivered(trackers, wait_s),
        folder,
        tuple(outcome.trials),
    )


def report(name: str, run_dir: Path, *, store: str | None = None) -> CampaignOutcome:
    """Return a campaign's report as the store has it now: nothing is computed."""
    folder = run_dir / SWEEPS / name
    campaign = load_campaign(folder / CAMPAIGN, check_data=False)
    known = of_sweep(folder, store)
    places = [find_place(run_dir, spec) for spec in campaign.sweeps]
    results = {place.name: single.report(place.name, run_dir).result for place in places if place.known}
    left = _choose(campaign, known).left_out
    if os.access(folder, os.W_OK):
        _write_report(folder, summary_table(name, results, left), campaign, results)
    return CampaignOutcome(name, results, left)


def is_known(name: str, run_dir: Path) -> bool:
    """Return whether a campaign of this name was run in a run directory."""
    return (run_dir / SWEEPS / name / CAMPAIGN).is_file()


def summary_table(name: str, results: Mapping[str, SweepResult], left_out: Sequence[str] = ()) -> Table:
    """Return one row for each sweep: how far it is, and what its best setting reaches."""
    rows = [_summary_row(sweep, result) for sweep, result in results.items()]
    return plain_table(f"campaign {name}", rows, left_out_lines(left_out))


def _summary_row(name: str, result: SweepResult) -> dict[str, Any]:
    counts = Counter(trial.status for trial in result.trials)
    others = {status: count for status, count in counts.items() if status != "done"}
    best = [trial for trials in result.best_settings.values() for trial in trials]
    found = [
        trial.metrics[metric_of(result.metric)] for trial in best if metric_of(result.metric) in trial.metrics
    ]
    return {
        "sweep": name,
        "trials": len(result.trials),
        "done": counts["done"],
        "others": ", ".join(f"{count} {status}" for status, count in others.items()) or "-",
        "rule": rule_title(result.metric),
        "best": f"{fmean(found):.3f}" if found else "-",
    }


def left_out_lines(settings: Sequence[str], most: int = 10) -> list[str]:
    """Return the lines that name the trials which the budget leaves out."""
    if not settings:
        return []
    more = [f"  and {len(settings) - most} more"] if len(settings) > most else []
    listed = [f"  {each}" for each in settings[:most]]
    return [f"{counted(len(settings), 'trial')} left out, which do not fit the budget:", *listed, *more]


@dataclass(frozen=True)
class _Share:
    """What a sweep's trials come to within a campaign."""

    fitting: int
    left_out: int
    added_stages: int
    added_s: float


@dataclass(frozen=True)
class _Chosen:
    """The trials that a campaign runs: those that fit its budget."""

    ledger: Ledger
    executor: Executor
    shares: tuple[_Share, ...]
    """One for each sweep, in their order."""
    left_out: tuple[str, ...]
    """The settings of trials that do not fit."""

    def trials(self) -> list[TrialSpec]:
        """Return them without the baselines, which come with the trials that need them."""
        return [entry.spec for entry in self.ledger.entries.values() if not entry.is_baseline]


def _choose(campaign: Campaign, store: Store) -> _Chosen:
    ledger, executor = make_ledger(_base(campaign), store)
    every = Ledger(campaign.name, executor.resolver, ledger.device)
    sweeps = [[every.add(trial) for trial in points(spec)] for spec in campaign.sweeps]
    hours = campaign.settings.budget
    spending = Spending(every, every.plan(_speed(campaign)), float("inf") if hours is None else hours * 3600)
    shares = []
    for entries in sweeps:
        before, known = spending.spent_s, len(spending.paid)
        fitting = spending.buy(entries)
        ledger.extend(entry.spec for entry in fitting)
        added = len(spending.paid) - known
        shares.append(_Share(len(fitting), len(entries) - len(fitting), added, spending.spent_s - before))
    named = _namer(campaign, every)
    left = tuple(named(trial) for trial in dict.fromkeys(spending.left_out))
    return _Chosen(ledger, executor, tuple(shares), left)


def _base(campaign: Campaign) -> SweepSpec:
    """Return the sweep that stands for the whole campaign: its name, its resources, no axes of its own."""
    first = campaign.sweeps[0]
    root = next((spec.trial.data_root for spec in campaign.sweeps if spec.trial.data_root), None)
    trial = first.trial.model_copy(update={"data_root": root})
    retries = max(spec.retries for spec in campaign.sweeps)
    return SweepSpec(name=campaign.name, trial=trial, resources=campaign.resources, retries=retries)


def _plan_alone(campaign: Campaign, spec: SweepSpec, store: Store) -> Plan:
    ledger, _ = make_ledger(spec, store)
    ledger.extend(points(spec))
    return ledger.plan(_speed(campaign))


def _planned(spec: SweepSpec, share: _Share, alone: Plan) -> PlannedSweep:
    known = not alone.unpredicted
    return PlannedSweep(
        spec.name,
        share.fitting,
        share.left_out,
        sum(count.unique - count.cached for count in alone.stages.values()),
        share.added_stages,
        alone.seconds_shared if known else None,
        share.added_s if known else None,
    )


def _length(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _speed(campaign: Campaign) -> Speed:
    return Speed(max(1, int(campaign.resources.cpu)))


def _announce(progress: Progress, campaign: Campaign, chosen: _Chosen, options: Options) -> None:
    for line in left_out_lines(chosen.left_out):
        progress.message(line, always=True)
    expected = chosen.ledger.plan(_speed(campaign))
    progress.estimate = Estimate(
        chosen.ledger, single.slots_of(campaign.resources, options), guess=_speed(campaign)
    )
    single.announce(progress, expected)


def _ranks(campaign: Campaign, ledger: Ledger) -> dict[str, int]:
    """Return the trials that start before others, by id: those of `first`, with their baselines."""
    ranks = {trial: len(campaign.settings.first) for trial in ledger.entries}
    for rank, spec in reversed(list(enumerate(campaign.sweeps[: len(campaign.settings.first)]))):
        for trial in points(spec):
            entry = ledger.add(trial)
            ranks |= {known: rank for known in (entry.id, entry.baseline_id) if known in ranks}
    return ranks


def _folder(run_dir: Path, name: str) -> Path:
    """Return the campaign's folder; raises `UserError` when a sweep has the name."""
    folder = run_dir / SWEEPS / name
    if (folder / SETTINGS).exists():
        hint = f"Give the campaign another name, such as name={name}-all"
        raise UserError(Problem("name", "expected a name that no sweep has", f"'{name}'", hint=hint))
    return folder


def _begun(run_dir: Path, campaign: Campaign) -> list[Path]:
    """Return the folders of the campaign and of its sweeps, as far as they were begun."""
    own = [run_dir / SWEEPS / campaign.name] if is_known(campaign.name, run_dir) else []
    places = [find_place(run_dir, spec) for spec in campaign.sweeps]
    return own + [place.folder for place in places if place.known]


def _part(run_dir: Path, spec: SweepSpec, campaign: str, at: Path | str) -> Part:
    """Take a sweep's folder and begin its record."""
    place = claim(run_dir, spec, at)
    spec = renamed(spec, place.name)
    ledger, executor = make_ledger(spec, to_write(run_dir, at))
    ledger.extend(points(spec))
    tracker = single.make_tracker(run_dir, place.folder, spec, {"bdtune.campaign": campaign})
    tracker.describe(spec, expected=len(ledger.entries))
    tracker.start()
    recorder = single.Recorder(tracker, ledger, place.folder, spec.keep)
    return Part(spec, place, ledger, recorder, Gallery(place.folder / "pictures", executor.resolver))


def _namer(campaign: Campaign, ledger: Ledger) -> Callable[[str], str]:
    """Return a function from a trial's id to what differs between the campaign's trials."""
    paths = dict.fromkeys(
        path for spec in campaign.sweeps for path in ("attack", "defense", *spec.axis_paths())
    )
    return setting_names(ledger, list(paths))


def _write_report(
    folder: Path, summary: Table, campaign: Campaign, results: Mapping[str, SweepResult]
) -> None:
    """Write `report.md`: the campaign's table, then that of each sweep."""
    specs = {spec.name: spec for spec in campaign.sweeps}
    tables = [
        table.build(
            result,
            paper=specs[name].published if name in specs else (),
            notes=specs[name].notes if name in specs else (),
        )
        for name, result in results.items()
    ]
    ranking = comparison.ranking_table(f"campaign {campaign.name}", ranking_of(list(results.values())))
    text = "\n\n".join(table.markdown(each) for each in [summary, ranking, *tables])
    replace_file(folder / "report.md", text.encode())


def _delivered(trackers: Sequence[Tracker], wait_s: float) -> str:
    """Wait for MLflow, for `wait_s` in all; returns what it lacks, in one line."""
    until = time.monotonic() + wait_s
    statuses = [
        tracker.close(max(0.1, until - time.monotonic()), say=partial(print, file=sys.stderr))
        for tracker in trackers
    ]
    waiting = [status for status in statuses if status.waiting]
    if not waiting:
        return statuses[-1].line()
    return replace(waiting[0], waiting=sum(status.waiting for status in waiting)).line()


class _Screens:
    """Passes on what happens in a campaign: to one display, and to the record of each sweep it concerns."""

    def __init__(self, progress: Progress, parts: Sequence[Part]) -> None:
        self.progress, self.parts = progress, parts

    def trial_done(self, result: TrialResult) -> None:
        """A trial ended; of one that failed, say how to repeat it in one process."""
        self.progress.trial_done(result)
        for part in self._of(result.id):
            part.recorder.trial_done(part.own(result))
        if result.status == "failed" and (parts := self._of(result.id)):
            line = single.leave_failed(parts[0].place.folder, parts[0].ledger, result.id)
            self.progress.message(line, always=True)

    def held(self, count: int) -> None:
        """So many trials wait for others."""
        self.progress.held(count)

    def message(self, text: str) -> None:
        """What the campaign does beside its trials."""
        self.progress.message(text)

    def stage(self, trial: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """A trial is in a stage."""
        self.progress.stage(trial, stage, epoch, epochs)
        for part in self._of(trial):
            part.recorder.began(trial)

    def learned(self, trial: str, role: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """A trial's stage has numbers of an epoch."""
        for part in self._of(trial):
            part.recorder.learned(trial, role, epoch, metrics)

    def _of(self, trial: str) -> list[Part]:
        return [part for part in self.parts if trial in part.ledger.entries]

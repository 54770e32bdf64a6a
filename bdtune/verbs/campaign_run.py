"""`bdtune campaign`: several sweeps, one driver, one queue."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import yaml

from bdtune.cluster.session import check_answers
from bdtune.cluster.sweep import Options, make_ledger, run_sweep
from bdtune.cluster.trial_source import ListSource
from bdtune.config.campaign import load_campaign, renamed
from bdtune.config.expand import points
from bdtune.engine.files import replace_file
from bdtune.errors import Problem, UserError
from bdtune.report.campaign import Member
from bdtune.report.estimate import Estimate
from bdtune.report.live import Progress
from bdtune.tracking.campaign_log import CampaignLog
from bdtune.trials.ledger import Ledger
from bdtune.trials.sweep_folder import SETTINGS, SWEEPS, Place, claim, note_store, release
from bdtune.verbs import sweep as single
from bdtune.verbs.campaign import CAMPAIGN, CampaignOutcome, begun, write_report
from bdtune.verbs.campaign_trials import base, choose, namer, speed
from bdtune.verbs.pictures import Gallery
from bdtune.verbs.stores import checked, store_for, to_write
from bdtune.verbs.sweep_report import reported
from bdtune.verbs.watching import Recorder, Screen
from bdtune.verbs.weights import Judged, Weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bdtune.cluster.sweep import Outcome
    from bdtune.config.campaign import Campaign
    from bdtune.config.sweep import SweepSpec
    from bdtune.tracking.mlflow_log import Tracker
    from bdtune.verbs.campaign_trials import Chosen


@dataclass(frozen=True)
class Part:
    """A sweep of a campaign that is run: its folder, and what records it."""

    name: str
    """What the campaign calls it."""
    spec: SweepSpec
    place: Place
    ledger: Ledger
    """Its own trials; the campaign's ledger has those of all sweeps."""
    recorder: Recorder
    gallery: Gallery

    def reported(self, outcome: Outcome) -> Member:
        """Write the sweep's report, and its end for MLflow."""
        latest = [self.recorder.own(trial) for trial in outcome.trials if trial.id in self.ledger.entries]
        folder = self.place.folder
        result, written = reported(folder, self.spec, self.ledger, self.gallery, latest)
        single.end(self.recorder.tracker, self.spec, result, written, interrupted=outcome.interrupted)
        return Member(self.name, self.spec, result, folder)


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
    at = checked(store_for(run_dir, begun(run_dir, campaign), store))
    chosen = choose(campaign, to_write(run_dir, at), folder)
    with Progress(quiet=quiet, name=namer(campaign, chosen.ledger)) as progress:
        _announce(progress, campaign, chosen, options)
        note_store(folder, at, run_dir)
        replace_file(folder / CAMPAIGN, yaml.safe_dump(campaign.to_dict(), sort_keys=False).encode())
        chosen.left_out.write(folder, chosen.about)
        parts = [_part(run_dir, spec, campaign.name, at) for spec in campaign.sweeps]
        weights = Weights(chosen.ledger, [Judged(part.spec, part.ledger) for part in parts])
        try:
            outcome = run_sweep(
                base(campaign),
                folder,
                chosen.ledger,
                chosen.executor,
                watcher=Screen(progress, [part.recorder for part in parts], weights),
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
            if dropped := weights.close():
                progress.message(dropped, always=True)
    done = CampaignOutcome(
        campaign,
        tuple(part.reported(outcome) for part in parts),
        folder,
        chosen.left_out,
        outcome.interrupted,
        outcome.given_up,
        latest=tuple(outcome.trials),
    )
    written = write_report(done)
    log = CampaignLog(run_dir, campaign)
    log.end(done.sweeps, done.note(), written, interrupted=outcome.interrupted)
    trackers = [*(part.recorder.tracker for part in parts), log.tracker]
    return replace(done, written=tuple(written), tracking=_delivered(trackers, wait_s))


def _announce(progress: Progress, campaign: Campaign, chosen: Chosen, options: Options) -> None:
    for line in chosen.left_out.lines():
        progress.message(line, always=True)
    expected = chosen.ledger.plan(speed(campaign))
    slots = single.slots_of(campaign.resources, options)
    progress.estimate = Estimate(chosen.ledger, slots, guess=speed(campaign))
    single.announce(progress, expected)


def _ranks(campaign: Campaign, ledger: Ledger) -> dict[str, int]:
    """Return the trials that start before others, by id: those of `first`, with their baselines."""
    asked = Ledger(ledger.sweep, ledger.resolver, ledger.device)  # with those that do not fit the budget
    ranks = {trial: len(campaign.settings.first) for trial in ledger.entries}
    for rank, spec in reversed(list(enumerate(campaign.sweeps[: len(campaign.settings.first)]))):
        for trial in points(spec):
            entry = asked.add(trial)
            ranks |= {known: rank for known in (entry.id, entry.baseline_id) if known in ranks}
    return ranks


def _folder(run_dir: Path, name: str) -> Path:
    """Return the campaign's folder; raises `UserError` when a sweep has the name."""
    folder = run_dir / SWEEPS / name
    if (folder / SETTINGS).exists():
        hint = f"Give the campaign another name, such as name={name}-all"
        raise UserError(Problem("name", "expected a name that no sweep has", f"'{name}'", hint=hint))
    return folder


def _part(run_dir: Path, asked: SweepSpec, campaign: str, at: Path | str) -> Part:
    """Take a sweep's folder and begin its record."""
    place = claim(run_dir, asked, at)
    spec = renamed(asked, place.name)
    ledger, executor = make_ledger(spec, to_write(run_dir, at))
    ledger.extend(points(spec))
    tracker = single.make_tracker(run_dir, place.folder, spec, {"bdtune.campaign": campaign})
    tracker.describe(spec, expected=len(ledger.entries))
    tracker.start()
    recorder = Recorder(tracker, ledger, place.folder, spec.keep)
    gallery = Gallery(place.folder / "pictures", executor.resolver)
    return Part(asked.name, spec, place, ledger, recorder, gallery)


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

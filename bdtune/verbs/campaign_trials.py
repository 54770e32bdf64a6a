"""Which trials a campaign runs: all that its sweeps ask for, or those that fit its budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.cluster.sweep import make_ledger
from bdtune.config.expand import points
from bdtune.config.sweep import SweepSpec
from bdtune.engine.key import key_of
from bdtune.report.names import setting_names
from bdtune.trials import left_out
from bdtune.trials.budget import Spending
from bdtune.trials.ledger import Ledger
from bdtune.trials.left_out import LeftOut
from bdtune.trials.speed import speed_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bdtune.config.campaign import Campaign
    from bdtune.config.trial import TrialSpec
    from bdtune.engine.execute import Executor
    from bdtune.engine.store import Store
    from bdtune.trials.ledger import Entry
    from bdtune.trials.speed import Speed


@dataclass(frozen=True)
class Share:
    """What a sweep's trials come to within a campaign."""

    fitting: int
    left_out: int
    added_stages: int
    added_s: float


@dataclass(frozen=True)
class Chosen:
    """The trials that a campaign runs: those that fit its budget."""

    ledger: Ledger
    executor: Executor
    shares: tuple[Share, ...]
    """One for each sweep, in their order."""
    left_out: LeftOut
    about: str
    """Key of what the choice follows from: the budget, and the trials that are asked for."""

    def trials(self) -> list[TrialSpec]:
        """Return them without the baselines, which come with the trials that need them."""
        return [entry.spec for entry in self.ledger.entries.values() if not entry.is_baseline]


def choose(campaign: Campaign, store: Store, folder: Path) -> Chosen:
    """Return the trials that fit the budget; what an earlier start of the same left out stays left out.

    `folder` is the campaign's.
    """
    ledger, executor = make_ledger(base(campaign), store)
    every = Ledger(campaign.name, executor.resolver, ledger.device)
    sweeps = [[every.add(trial) for trial in points(spec)] for spec in campaign.sweeps]
    about = key_of([campaign.settings.budget, sorted(every.entries)])
    decided = left_out.read(folder, about)
    hours = campaign.settings.budget
    limit_s = float("inf") if hours is None or decided is not None else hours * 3600
    spending = Spending(every, every.plan(speed(campaign)), limit_s)
    added = []
    for entries in sweeps:
        before, known = spending.spent_s, len(spending.paid)
        allowed = [entry for entry in entries if decided is None or entry.id not in decided.trials]
        ledger.extend(entry.spec for entry in spending.buy(allowed))
        added.append((len(spending.paid) - known, spending.spent_s - before))
    shares = tuple(_share(entries, ledger, *costs) for entries, costs in zip(sweeps, added, strict=True))
    return Chosen(ledger, executor, shares, _left_out(campaign, every, ledger), about)


def _share(entries: Sequence[Entry], ledger: Ledger, stages: int, seconds: float) -> Share:
    fitting = sum(entry.id in ledger.entries for entry in entries)
    return Share(fitting, len(entries) - fitting, stages, seconds)


def _left_out(campaign: Campaign, every: Ledger, ledger: Ledger) -> LeftOut:
    """Return what the ledger of all trials has and that of the chosen ones lacks."""
    named = namer(campaign, every)
    lacking = [entry for entry in every.entries.values() if entry.id not in ledger.entries]
    trials = {entry.id: named(entry.id) for entry in lacking if not entry.is_baseline}
    return LeftOut(trials, tuple(entry.id for entry in lacking if entry.is_baseline))


def base(campaign: Campaign) -> SweepSpec:
    """Return the sweep that stands for the whole campaign: its name, its resources, no axes of its own."""
    first = campaign.sweeps[0]
    root = next((spec.trial.data_root for spec in campaign.sweeps if spec.trial.data_root), None)
    trial = first.trial.model_copy(update={"data_root": root})
    retries = max(spec.retries for spec in campaign.sweeps)
    return SweepSpec(name=campaign.name, trial=trial, resources=campaign.resources, retries=retries)


def speed(campaign: Campaign) -> Speed:
    """Return what guesses the seconds of stages that were never run."""
    return speed_of(campaign.resources, campaign.speed)


def namer(campaign: Campaign, ledger: Ledger) -> Callable[[str], str]:
    """Return a function from a trial's id to what differs between the campaign's trials."""
    paths = dict.fromkeys(
        path for spec in campaign.sweeps for path in ("attack", "defense", *spec.axis_paths())
    )
    return setting_names(ledger, list(paths))

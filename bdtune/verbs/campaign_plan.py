"""`bdtune plan` of a campaign: what each sweep takes alone, and what it adds to those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.cluster.sweep import make_ledger
from bdtune.config.campaign import load_campaign
from bdtune.config.expand import points
from bdtune.report.table import duration, size
from bdtune.trials.sweep_folder import SWEEPS
from bdtune.verbs.campaign import begun
from bdtune.verbs.campaign_trials import choose, speed
from bdtune.verbs.stores import store_for, to_read
from bdtune.verbs.tables import counted, no_cost, plain_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bdtune.config.at_hand import Absent
    from bdtune.config.campaign import Campaign
    from bdtune.config.load import Named
    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.plan import Plan
    from bdtune.engine.store import Store
    from bdtune.report.table import Table
    from bdtune.trials.left_out import LeftOut
    from bdtune.verbs.campaign_trials import Share


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

    campaign: Campaign
    sweeps: tuple[PlannedSweep, ...]
    whole: Plan
    """Of all trials that fit the budget, as of one sweep."""
    left_out: LeftOut

    @property
    def absent(self) -> tuple[tuple[str, Absent], ...]:
        """Sweeps with trials whose data sets are not there."""
        return self.campaign.absent

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune plan --json` prints."""
        return {
            "campaign": self.campaign.name,
            "sweeps": [vars(sweep) for sweep in self.sweeps],
            "left_out": list(self.left_out.trials.values()),
            "absent": [{"sweep": sweep, **each.to_json()} for sweep, each in self.absent],
            "tables": [table.stem for table in self.campaign.tables],
            **self.whole.to_json(),
        }


def plan(file: Named, overrides: Sequence[str], run_dir: Path, *, store: str | None = None) -> CampaignPlan:
    """Load a campaign and count what it needs, without data sets that are not there; writes nothing."""
    campaign = load_campaign(file, overrides, partial=True)
    known = to_read(store_for(run_dir, begun(run_dir, campaign), store))
    chosen = choose(campaign, known, run_dir / SWEEPS / campaign.name)
    sweeps = [
        _planned(spec, share, _plan_alone(campaign, spec, known))
        for spec, share in zip(campaign.sweeps, chosen.shares, strict=True)
    ]
    guess = speed(campaign)
    whole = chosen.ledger.plan(guess, weigh=guess.weight_bytes)
    return CampaignPlan(campaign, tuple(sweeps), whole, chosen.left_out)


def _plan_alone(campaign: Campaign, spec: SweepSpec, store: Store) -> Plan:
    ledger, _ = make_ledger(spec, store)
    ledger.extend(points(spec))
    return ledger.plan(speed(campaign))


def _planned(spec: SweepSpec, share: Share, alone: Plan) -> PlannedSweep:
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
    notes = [*_totals(made), *_weights(made.whole), *made.left_out.lines()]
    notes += [f"{sweep}: {each.line()}" for sweep, each in made.absent]
    trials, baselines = counted(made.whole.trials, "trial"), counted(made.whole.baselines, "baseline")
    title = f"campaign {made.campaign.name}: {counted(len(rows), 'sweep')}, {trials} and {baselines}"
    return plain_table(title, rows, notes)


def _weights(whole: Plan) -> list[str]:
    if not whole.weights:
        return []
    rule = "each sweep leaves weights_gb of its own, and those of its best"
    return [f"weights of defended classifiers: at most {size(whole.weights)}; {rule}"]


def _totals(made: CampaignPlan) -> list[str]:
    """Return the lines that compare the campaign with its sweeps alone, and with nothing shared."""
    whole, counts = made.whole, made.whole.stages.values()
    unique, cached = (sum(getattr(count, name) for count in counts) for name in ("unique", "cached"))
    every = sum(count.without_sharing for count in counts)
    apart = sum(sweep.stages for sweep in made.sweeps)
    stages = (
        f"at most {counted(unique - cached, 'stage')} to compute, {cached} in the store; "
        f"{apart} as sweeps of their own; {every} if nothing were shared"
    )
    if whole.unpredicted:
        return [stages, no_cost(whole.unpredicted, made.campaign.resources)]
    alone = sum(sweep.alone_s or 0.0 for sweep in made.sweeps)
    return [
        stages,
        f"about {duration(whole.seconds_shared)} of stages to compute; {duration(alone)} as sweeps of "
        f"their own; {duration(whole.seconds_unshared)} if nothing were shared",
    ]


def _length(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)

"""A campaign's tables: its sweeps side by side, and cross tables over the trials of all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from bdtune.config.sweep import Select
from bdtune.metrics import metric_of
from bdtune.report import cross
from bdtune.report.cross_axes import PLUGINS
from bdtune.report.groups import grouped
from bdtune.report.selection import rule_title, selected

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bdtune.config.campaign import Campaign, CampaignTable
    from bdtune.config.sweep import Published, SweepSpec
    from bdtune.report.cross import CrossTable
    from bdtune.trials.results import Scalar, SweepResult, TrialResult

ORDER = ("done", "failed", "diverged", "stopped", "pending")
"""Of what two sweeps say of one trial, the first counts."""


@dataclass(frozen=True)
class Member:
    """A sweep of a campaign as it stands."""

    name: str
    """What the campaign calls it; its folder has a number if another sweep has the name."""
    spec: SweepSpec
    result: SweepResult
    folder: Path
    why: Mapping[str, str] = field(default_factory=dict)
    """Why trials were not run, by id."""


@dataclass(frozen=True)
class CampaignTables:
    """The tables of a campaign; `why`: why trials were not run, by id, where their sweep does not know it."""

    campaign: Campaign
    members: Sequence[Member]
    why: Mapping[str, str] = field(default_factory=dict)

    def all(self) -> dict[str, CrossTable]:
        """Return the tables that the campaign asks for, by the name of their files."""
        tables = {table.stem: self.of(table) for table in self.campaign.tables}
        return {stem: table for stem, table in tables.items() if table is not None}

    def of(self, table: CampaignTable) -> CrossTable | None:
        """Return one table; None where none of its sweeps was run yet."""
        own = [member for member in self.members if member.name in (table.sweeps or (member.name,))]
        if not any(member.result.trials for member in own):
            return None
        kind, name = ("sweep", own[0].spec.name) if len(own) == 1 else ("campaign", self.campaign.name)
        result = merged(name, own, table.select)
        why = {trial: reason for member in own for trial, reason in member.why.items()}
        published = [number for member in own for number in published_of(member)]
        return cross.build(result, table, published=published, why={**self.why, **why}, kind=kind)


def merged(name: str, members: Sequence[Member], select: Select | None = None) -> SweepResult:
    """Return the trials of several sweeps as one sweep's, each trial once.

    `select`: the rule; None: that of all sweeps if they have the same one, else that of a sweep by default.
    """
    found: dict[str, list[TrialResult]] = {}
    for member in members:
        for trial in member.result.trials:
            found.setdefault(trial.id, []).append(trial)
    rule = select or common_rule(members)
    return selected(name, [_one(trials) for trials in found.values()], rule.metric, rule.mode, over=rule.over)


def common_rule(members: Sequence[Member]) -> Select:
    """Return the rule that all sweeps have, else that of a sweep by default."""
    rules = {member.spec.select for member in members}
    return rules.pop() if len(rules) == 1 else Select()


def _one(trials: Sequence[TrialResult]) -> TrialResult:
    """Return what is known of a trial that several sweeps have; a baseline in all of them is one here."""
    best = min(trials, key=lambda trial: ORDER.index(trial.status))
    return replace(best, is_baseline=all(trial.is_baseline for trial in trials))


def published_of(member: Member) -> Iterator[Published]:
    """Yield a sweep's published numbers, each with all plugins' settings that its own trials share.

    A number states what its sweep varies; without the rest it would stand beside trials of other sweeps too.
    """
    groups = grouped(member.result.trials)
    for number in member.spec.published:
        undefended = number.params.get("defense") == "none"
        own = [g.params for g in groups if cross.is_undefended(g) == undefended and cross.meets(number, g)]
        if own:
            yield number.model_copy(update={"params": {**_shared(own), **number.params}})


def _shared(params: Sequence[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    return {
        path: value
        for path, value in params[0].items()
        if path.partition(".")[0] in PLUGINS and all(path in own and own[path] == value for own in params)
    }


def summary_rows(members: Sequence[Member]) -> list[dict[str, Any]]:
    """Return one row for each sweep: how far it is, and what its best settings reach in mean."""
    return [_summary_row(member.result) for member in members]


def _summary_row(result: SweepResult) -> dict[str, Any]:
    counts = Counter(trial.status for trial in result.trials)
    others = {status: count for status, count in counts.items() if status != "done"}
    best = [trial for trials in result.best_settings.values() for trial in trials]
    metric = metric_of(result.metric)
    found = [trial.metrics[metric] for trial in best if metric in trial.metrics]
    return {
        "sweep": result.sweep,
        "trials": len(result.trials),
        "done": counts["done"],
        "others": ", ".join(f"{count} {status}" for status, count in others.items()) or "-",
        "rule": rule_title(result.metric),
        "best": f"{fmean(found):.3f}" if found else "-",
    }

"""The page of a campaign: its sweeps side by side, with links to their own pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.metrics import metric_of
from bdtune.report import comparison, cross, table
from bdtune.report.best import marked
from bdtune.report.campaign import CampaignTables, merged
from bdtune.report.groups import grouped
from bdtune.report.page import plots
from bdtune.report.page.asked import campaign_asked, campaign_text
from bdtune.report.page.build import TRADEOFF, tradeoffs
from bdtune.report.page.costs import (
    cost_table,
    sharing_sentence,
    stage_costs,
    sweep_cost_table,
    sweep_costs,
)
from bdtune.report.page.lesson import lesson
from bdtune.report.page.provenance import data_table, facts, trials_table
from bdtune.report.page.section import FILE, Link, Section, html_blocks, html_of, write_page
from bdtune.report.page.sensitivity import effects, pairs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bdtune.config.sweep import Select
    from bdtune.engine.manifest import Manifest
    from bdtune.report.campaign import Member
    from bdtune.report.table import Table
    from bdtune.trials.results import SweepResult

HEAT = "Means over seeds and over the settings of a defense, on each attack."


@dataclass(frozen=True)
class CampaignInputs:
    """What a campaign's page is made of."""

    tables: CampaignTables
    summary: Table
    """How far each sweep is."""
    left_out: int = 0
    """Trials that do not fit the budget."""
    manifests: Sequence[Manifest] = ()
    """Of the stages of all trials."""

    @property
    def members(self) -> Sequence[Member]:
        """Its sweeps."""
        return self.tables.members


def write_campaign(inputs: CampaignInputs, folder: Path) -> list[Path]:
    """Write `report.html` and `figures/*.svg` into a campaign's folder; return their paths, the page's first.

    It links to `report.html` in the folders of the sweeps.
    """
    settings = inputs.tables.campaign.settings
    return write_page(folder, settings.name, settings.description, list(_sections(inputs, folder)))


def _sections(inputs: CampaignInputs, folder: Path) -> Iterator[Section]:
    """Yield the sections that the results have something for."""
    campaign, members = inputs.tables.campaign, inputs.members
    whole = merged(campaign.name, members)
    groups = grouped(whole.trials)
    yield Section(
        "What was asked",
        facts=campaign_asked(campaign, whole, inputs.left_out),
        folded={"All settings": campaign_text(campaign)},
    )
    yield Section("The lesson", lines=campaign_lesson(members))
    yield Section("Sweeps", tables=[html_of(inputs.summary)], links=list(_links(members, folder)))
    yield _tables(inputs, whole)
    for title, ranking in comparison.of_campaign(campaign.name, [each.result for each in members]).items():
        yield Section(title, tables=[html_of(ranking)])
    if drawn := list(tradeoffs(groups, marked(groups, whole))):
        yield Section("Accuracy against attack success", TRADEOFF, pictures=drawn)
    rule = metric_of(whole.metric)
    for pair in pairs(groups, rule):
        if set(pair.names) == {"attack", "defense"}:
            caption = f"{rule} by attack and defense"
            heat = plots.picture("attacks", plots.heat_map(pair, rule), caption, wide=True)
            yield Section("Attacks against defenses", HEAT, pictures=[heat])
    if costs := stage_costs(whole):
        yield _cost(costs, whole, members)
    yield Section(
        "Provenance",
        facts=facts(whole, inputs.manifests),
        tables=[html_of(data_table(whole))],
        folded={"All trials": html_of(trials_table(whole))},
    )


def campaign_lesson(members: Sequence[Member]) -> list[str]:
    """Return what the trials of all sweeps teach; sweeps with another rule stand apart.

    A detector, say, is ranked by what it detects: its classifier is the undefended one.
    """
    ruled: dict[Select, list[Member]] = {}
    for member in members:
        ruled.setdefault(member.spec.select, []).append(member)
    found = []
    for own in sorted(ruled.values(), key=len, reverse=True):
        names = ", ".join(member.spec.name for member in own)
        where = f"{names}: " if len(ruled) > 1 and own is not max(ruled.values(), key=len) else ""
        found += [where + line for line in _lesson(merged(names, own))]
    return found


def _lesson(result: SweepResult) -> list[str]:
    groups = grouped(result.trials)
    known = {name for group in groups for trial in group.done for name in trial.metrics}
    rule = metric_of(result.metric)
    rule = rule if rule in known else "acc"
    return lesson(result, effects(groups, [rule], rule), rule)


def _links(members: Sequence[Member], folder: Path) -> Iterator[Link]:
    for member in members:
        page = member.folder / FILE
        address = page.relative_to(folder.parent).as_posix()
        yield Link(member.spec.name, f"../{address}", member.spec.description)


def _tables(inputs: CampaignInputs, whole: SweepResult) -> Section:
    """Return the campaign's tables, else one of the usual shape; those of each sweep can be unfolded."""
    shown = list(inputs.tables.all().values()) or [cross.build(whole, kind="campaign")]
    folded = {
        f"Every setting of {member.spec.name}": html_of(
            table.build(member.result, paper=member.spec.published, notes=member.spec.notes)
        )
        for member in inputs.members
    }
    return Section("Tables", tables=[block for each in shown for block in html_blocks(each)], folded=folded)


def _cost(costs: Sequence, whole: SweepResult, members: Sequence[Member]) -> Section:
    by_sweep = sweep_costs({member.spec.name: member.result for member in members})
    bars = plots.picture("costs", plots.cost_bars(costs), "Seconds by stage, over all sweeps.")
    tables = [html_of(sweep_cost_table(by_sweep)), html_of(cost_table(costs))]
    return Section("Cost", sharing_sentence(by_sweep, whole), tables=tables, pictures=[bars])

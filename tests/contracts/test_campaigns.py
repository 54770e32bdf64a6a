"""Every shipped campaign loads, with sweeps that have names of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bdtune.config.campaign import load_campaign
from bdtune.config.expand import points
from bdtune.config.load import campaigns, search_spaces
from bdtune.config.trial import to_params, trial_id
from bdtune.report.campaign import CampaignTables, Member
from bdtune.trials.results import SweepResult, TrialResult

if TYPE_CHECKING:
    from bdtune.config.campaign import Campaign
    from bdtune.config.sweep import SweepSpec

NAMES = [campaign.name for campaign in campaigns()]


def test_a_campaign_is_no_search_space() -> None:
    assert "digits_all" in NAMES
    assert not set(NAMES) & {space.name for space in search_spaces()}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_it_loads_and_says_what_it_is_for(name: str) -> None:
    campaign = load_campaign(name, check_data=False)
    assert campaign.name == name.rpartition("/")[2]
    assert campaign.settings.description
    assert len(campaign.sweeps) > 1
    assert all(points(spec) for spec in campaign.sweeps)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_its_tables_have_cells_for_its_trials_before_anything_is_run(name: str) -> None:
    campaign = load_campaign(name, check_data=False)
    tables = CampaignTables(campaign, _members(campaign)).all()
    assert len(tables) == len(campaign.tables) > 1
    for stem, table in tables.items():
        missing = {cell.missing for line in table.lines for cell in line.cells}
        assert "not run" in missing, stem
        assert {each for each in missing if " of " not in each} <= {"not run", "not asked"}, stem
        assert table.title.strip(), stem


def _members(campaign: Campaign) -> list[Member]:
    return [
        Member(spec.name, spec, SweepResult(spec.name, tuple(_pending(spec))), Path(spec.name))
        for spec in campaign.sweeps
    ]


def _pending(spec: SweepSpec) -> list[TrialResult]:
    return [TrialResult(trial_id(trial), "pending", to_params(trial)) for trial in points(spec)]


@pytest.mark.slow
def test_a_papers_table_over_several_sweeps_has_the_numbers_of_each_beside_its_own_data_set() -> None:
    campaign = load_campaign("paper/lfd", check_data=False)
    table = CampaignTables(campaign, _members(campaign)).all()["table-2"]
    published: dict[str, set[float]] = {}
    for line in table.lines:
        if "mean" not in line.labels:
            known = {cell.published for cell in line.cells if cell.published is not None}
            published.setdefault(line.labels[0], set()).update(known)
    own = {
        points(spec)[0].dataset.plugin_name(): {v for n in spec.published for v in n.metrics.values()}
        for spec in campaign.sweeps
        if spec.name.startswith("lfd_2")
    }
    assert len(own) == 3
    assert published.keys() == own.keys()
    assert all(values and values <= own[name] for name, values in published.items())

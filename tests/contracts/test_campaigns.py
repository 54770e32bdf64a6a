"""Every shipped campaign loads, with sweeps that have names of their own."""

from __future__ import annotations

import pytest

from bdtune.config.campaign import load_campaign
from bdtune.config.expand import points
from bdtune.config.load import campaigns, search_spaces

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

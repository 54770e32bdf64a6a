"""Campaigns on a real Ray: killed ten times, and two that share a sweep."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.end_to_end.campaigns import (
    BETAS,
    LEVELS,
    QUALITIES,
    CampaignRuns,
    Together,
    computed,
    numbers,
)
from tests.end_to_end.chaos import Chaos
from tests.end_to_end.kills import digests

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 10
SLOWER = 4.0
"""So that ten kills, and what is computed between them, end before the campaign does."""


def test_a_campaign_that_is_killed_ten_times_ends_as_if_nothing_had_happened(tmp_path):
    undisturbed = CampaignRuns(tmp_path / "undisturbed", "both", BETAS, LEVELS, slower=SLOWER)
    expected = undisturbed.finish()
    runs = CampaignRuns(tmp_path / "killed", "both", BETAS, LEVELS, slower=SLOWER)
    chaos = Chaos(["SIGKILL driver"] * KILLS, seed=15, span_s=2.5, early=0.5)
    result = chaos.disturb(runs, "both")
    assert len(chaos.blows) == KILLS
    assert len([code for code in chaos.codes if code != 0]) == KILLS
    assert not chaos.unexplained
    assert numbers(result) == numbers(expected)
    assert digests(runs) == digests(undisturbed)
    assert not runs.published_twice()
    assert not runs.leftovers()
    statuses, runs_of = runs.mlflow_runs()
    assert set(statuses) == {"FINISHED"}
    asked = Counter(trial["id"] for each in result["sweeps"].values() for trial in each["trials"])
    assert {trial: count for trial, count in runs_of.items() if trial in asked} == asked
    assert len(runs_of) == len(asked) + 2  # and a run of each sweep in the campaign's experiment
    tables = [(each.home / "sweeps" / "both" / "table.csv").read_text() for each in (runs, undisturbed)]
    assert tables[0] == tables[1]


def test_two_campaigns_that_share_a_sweep_compute_it_once(tmp_path):
    first = CampaignRuns(tmp_path / "first", "first", BETAS, LEVELS)
    second = Together(first, "second", BETAS, QUALITIES)
    started = [first.start(), second.start()]
    results = [json.loads(process.communicate(timeout=300)[0]) for process in started]
    assert [process.returncode for process in started] == [0, 0], (first.folder / "stderr.txt").read_text()
    assert numbers(results[0])["betas"] == numbers(results[1])["betas"]
    # levels 0 and 1 of the prefix; tails of both verdicts at level 0, one at level 1, one of another quality
    made = computed(first)
    assert (made["toy_prefix"], made["toy_tail"]) == (2, 4)
    started_stages = Counter(json.dumps([note["stage"], note["identity"]]) for note in first.notes())
    assert set(started_stages.values()) == {1}
    assert not first.published_twice()
    assert not first.leftovers()
    folders = {folder.name for folder in (first.home / "sweeps").glob("[!.]*")}
    assert folders == {"first", "second", "betas", "levels", "qualities"}

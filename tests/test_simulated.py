"""The simulated campaign at a small size: nothing is computed twice, nothing beats the lower bound."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from tests.benchmarks.campaign import Campaign, draw, published_seconds, row
from tests.benchmarks.simulated import Cluster

TRIALS = 100
SMALL = Cluster(nodes=4, gpus_per_node=2)
LOSING = Cluster(nodes=4, gpus_per_node=2, lost_per_hour=0.5)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return Campaign(TRIALS, tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize("cluster", [SMALL, LOSING], ids=["no loss", "losses"])
def test_every_trial_ends_no_stage_is_computed_twice_and_the_bound_holds(campaign, cluster):
    course, store = campaign.simulated(cluster, seed=1)
    assert course.started - course.trials_lost + course.settled == len(campaign.ledger.entries)
    assert course.twice == []
    assert set(store.published.values()) == {1}
    assert course.makespan >= course.lower_bound(cluster.slots)
    assert course.waited_inside == 0, "those that would wait on a GPU are held back"
    assert max(busy for _, busy, _ in course.curve) <= cluster.slots
    assert [at for at, _, _ in course.curve] == sorted(at for at, _, _ in course.curve)
    used = course.work + course.lost + course.idle_held + course.idle_end + course.gone
    assert used == pytest.approx(cluster.slots * course.makespan), "each GPU second is one of these"


def test_losses_cost_time_and_no_more_than_what_came_after_a_checkpoint(campaign):
    whole, _ = campaign.simulated(SMALL, seed=1)
    losing, _ = campaign.simulated(LOSING, seed=1)
    assert losing.nodes_lost > 0
    assert losing.trials_lost > 0
    assert losing.work == whole.work
    assert losing.makespan > whole.makespan
    seconds = published_seconds()
    epoch = max(seconds["simclr"], seconds["flows"], seconds["supervised"]) / 50
    assert losing.lost <= losing.trials_lost * (epoch + LOSING.checkpoint_s)


def test_the_same_seed_gives_the_same_course(campaign):
    first, again, other = (campaign.simulated(LOSING, seed=seed)[0] for seed in (1, 1, 2))
    assert asdict(first) == asdict(again)
    assert first.curve != other.curve


def test_encoders_start_before_the_models_that_trials_are_compared_with(campaign):
    course, _ = campaign.simulated(Cluster(nodes=1, gpus_per_node=8), seed=0)
    assert course.makespan / course.lower_bound(8) < 1.05, "1.13 while baselines went first"


def test_the_table_is_json_and_the_curve_a_picture(campaign, tmp_path):
    course, _ = campaign.simulated(SMALL, seed=0)
    json.dumps(row(course, SMALL), allow_nan=False)
    draw({"no loss": course}, SMALL, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")

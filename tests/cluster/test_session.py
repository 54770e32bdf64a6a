from __future__ import annotations

import pytest

from bdtune.cluster.schedulers import most_open
from bdtune.cluster.session import Needs, _fit
from bdtune.config.sweep import Scheduler


@pytest.mark.parametrize(
    ("node", "needs", "slots"),
    [
        ({"CPU": 8}, Needs(2), 4),
        ({"CPU": 8}, Needs(3), 2),
        ({"CPU": 0.5}, Needs(1), 0),
        ({"CPU": 8, "GPU": 2}, Needs(1, 0.5), 4),
        ({"CPU": 8, "GPU": 2}, Needs(1, 0.4), 4),  # two on each GPU, not five on both
        ({"CPU": 8, "GPU": 4}, Needs(1, 2), 2),
        ({"CPU": 8}, Needs(1, 0.1), 0),
        ({"CPU": 4}, Needs(1, helper_cpu=1), 2),
        ({"CPU": 0.3}, Needs(0.1), 3),
    ],
)
def test_trials_that_fit_on_a_node(node, needs, slots):
    assert _fit(node, needs) == slots


def test_a_streaming_trial_asks_for_a_cpu_beside_its_own():
    assert Needs(1, 0.5, 1).bundles == [{"CPU": 1, "GPU": 0.5}, {"CPU": 1}]
    assert Needs(2).bundles == [{"CPU": 2}]


def test_hyperband_opens_a_band_of_trials_the_others_as_many_as_fit():
    assert most_open(Scheduler(name="asha"), 81, 2) == 2
    assert most_open(Scheduler(name="hyperband"), 81, 2) == 5 + 8 + 15 + 34 + 81
    assert most_open(Scheduler(name="hyperband"), 1, 4) == 4

from __future__ import annotations

import pytest

from tests.cluster.sweeping import defended

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and files of Ray's own
]


def test_what_is_shared_is_computed_once_and_a_rerun_starts_nothing(bench):
    grid = ("defense.prefix.level=0,1", "defense.beta=0.3,0.45,0.5", "defense.tail.epochs=2")
    outcome = bench.run(*grid)
    assert {trial.status for trial in outcome.trials} == {"done"}
    assert len(defended(outcome)) == 6
    assert all(trial.metrics["acc"] == 1.0 for trial in defended(outcome))
    assert bench.published() == {
        "all_samples": 1,
        "supervised": 1,
        "toy_prefix": 2,
        "toy_threshold": 6,
        "toy_tail": 4,  # 0.45 and 0.5 keep the same samples
        "diagnose": 6,
        "evaluate": 5,
    }
    assert not bench.twice()
    plan = bench.plan(*grid)
    assert {name: count.unique for name, count in plan.stages.items()} == bench.published()
    assert all(count.cached == count.unique for count in plan.stages.values())
    computed = sum(use.computed for trial in outcome.trials for use in trial.stages.values())
    assert computed == bench.published().total()

    again = bench.run(*grid)
    assert again.released == 0
    assert [trial.metrics for trial in again.trials] == [trial.metrics for trial in outcome.trials]
    assert not bench.twice()

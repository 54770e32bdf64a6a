"""A real cluster of two nodes on this machine, each with copies of its own, and a store in a bucket."""

from __future__ import annotations

import os

import pytest

from bdtune.cluster.sweep import Options, make_ledger, run_sweep
from bdtune.engine.store import Store
from tests.conftest import start_ray

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("s3"),
    pytest.mark.filterwarnings("ignore"),  # sockets and files of Ray's own
]

GRID = (
    "defense.prefix.level=0,1",
    "defense.prefix.trouble=meet",  # however late the second node's process starts
    "defense.tail.quality=0.2,0.4,0.6,0.8,1.0",
    "defense.tail.seconds=1",
)

STARTS = 3


@pytest.fixture
def two_nodes(tmp_path, s3, monkeypatch):
    """Start a cluster whose nodes keep their copies in folders `one` and `two`; returns its address."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    import ray

    others = ray.is_initialized()
    ray.shutdown()
    cluster = started([tmp_path / "one", tmp_path / "two"])
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()
    if others:
        start_ray()  # other tests have a session


def started(folders):
    """Start a cluster with a node for each folder, again if need be: Ray gives a node 30 s to start."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    for left in reversed(range(STARTS)):
        cluster = Cluster()
        try:
            for folder in folders:
                cluster.add_node(**small, env_vars={"BDTUNE_CACHE": str(folder)})
            cluster.wait_for_nodes(timeout=120)
            return cluster
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def test_trials_run_where_the_results_are_that_they_read(two_nodes, bench, s3, tmp_path):
    spec = bench.spec(*GRID)
    folder = bench.root / "sweeps" / spec.name
    folder.mkdir(parents=True)
    store = Store(s3.new_address())
    ledger, executor = make_ledger(spec, store)
    options = Options(address=two_nodes)
    outcome = run_sweep(spec, folder, ledger, executor, watcher=bench.watcher, options=options)
    assert {trial.status for trial in outcome.trials} == {"done"}
    assert all(any((tmp_path / node).glob("objects/??/*")) for node in ("one", "two")), (
        "both nodes have copies"
    )
    uses = [trial.stages["classifier"] for trial in outcome.trials if not trial.is_baseline]
    assert len(uses) == 10
    far = sum(use.fetched > 0 for use in uses)
    assert far <= 3, "only where a node has nothing left to do does it fetch what the other one made"
    [size] = {trial.stages["verdict"].bytes for trial in outcome.trials if not trial.is_baseline}
    by_driver = sum(note["pid"] == os.getpid() for note in bench.notes("toy_threshold"))
    moved, read = sum(use.fetched + use.served for use in uses), sum(use.read for use in uses)
    assert moved == read + by_driver * size, "what the driver derived in a trial's name, the trial reads"
    assert read > 0

"""Nodes that die, come, go and are cut off: the sweep ends as if nothing had happened."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.end_to_end.faults import struck
from tests.end_to_end.machines import PATIENCE_S, ClusterRuns, machines

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.xdist_group("s3"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_nodes_die_join_are_cut_off_and_drained_and_the_head_is_lost(tmp_path, s3):
    faults, different = struck(
        ("kill", "add", "refuse", "drain", "head"), tmp_path, s3, cut_s=8.0, slower=5.0
    )
    assert not different
    by_kind = {fault.kind: fault for fault in faults}
    for kind in ("node killed", "node drained"):
        assert by_kind[kind].resumed != "0 of 10", "from its last checkpoint"
    killed = by_kind["node killed"].node
    said = (tmp_path / "sweep" / "stderr.txt").read_text()
    for what in (
        f"node {killed} is gone",
        "node new joined",
        f"node {by_kind['node drained'].node} is drained",
    ):
        assert what in said


def test_a_store_that_a_node_does_not_see_is_refused_at_once_by_name(tmp_path, s3):
    """Nodes of the test do not see the run directory; without --store the store lies there."""
    runs = ClusterRuns(tmp_path / "folder", "")
    with machines(tmp_path, s3, runs.folder / "runs") as cluster:
        cluster.add("head", NODE_HIDDEN="")
        cluster.add("blind")
        begun = time.monotonic()
        process = subprocess.run(
            [*runs.command("--address", cluster.address)],
            env=runs.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        took_s = time.monotonic() - begun
    assert process.returncode == 2, process.stderr
    assert "--store: expected a store that every node sees" in process.stderr
    assert "node blind" in process.stderr
    assert "node head" not in process.stderr
    assert took_s < 120
    assert not runs.notes()

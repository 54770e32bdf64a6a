"""A sweep that is interrupted, or loses Ray, outside of Tune's own loop."""

from __future__ import annotations

import json

import pytest

from bdtune.cluster import sweep
from bdtune.cluster.daemons import RayDiedError
from bdtune.engine.owner import me
from tests.cluster.test_scratch import ended_pid


def at_ray(monkeypatch, does):
    """Let something happen where Ray would be started."""
    monkeypatch.setattr(sweep, "_run_on_ray", lambda driver, *_: does(driver))


def test_ctrl_c_at_any_moment_ends_a_sweep_with_what_it_has(bench, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    at_ray(monkeypatch, interrupted)
    outcome = bench.run()
    assert outcome.interrupted
    assert outcome.given_up is None
    assert not list((bench.store.root / "pins").iterdir())


def test_a_sweep_that_loses_ray_is_given_up_for_now_and_says_why(bench, monkeypatch):
    def loses(_):
        raise RayDiedError("Ray's process raylet was killed")

    at_ray(monkeypatch, loses)
    outcome = bench.run()
    assert outcome.interrupted
    assert outcome.given_up == "Ray's process raylet was killed"


@pytest.mark.parametrize("folder", ["leases", "tmp"])
def test_what_a_worker_left_that_was_killed_meanwhile_goes_at_the_end(bench, monkeypatch, folder):
    pid = ended_pid()

    def leaves(driver):
        left = bench.store.root / folder / f".key.{pid}-{'0' * 12}@{me()['host']}"
        left.write_text("half")
        (bench.store.root / "leases" / "key").write_text(json.dumps({**me(), "pid": pid}))

    at_ray(monkeypatch, leaves)
    bench.run()
    assert not list((bench.store.root / "leases").iterdir())
    assert [path.name for path in (bench.store.root / "tmp").iterdir()] == ["checkpoints"]

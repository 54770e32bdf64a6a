"""The process of a trial, without Ray around it."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from bdtune.cluster.sweep import _watching
from bdtune.cluster.trainable import Trial
from bdtune.engine.stage import Tick
from tests.cluster.sweeping import Silent


@pytest.fixture
def process(tmp_path):
    trial = Trial.__new__(Trial)
    trial.store = None
    trial.shared = SimpleNamespace(mode="max", objective=None, live=tmp_path)
    return trial


@pytest.mark.parametrize("judged", [False, True])
def test_a_trial_that_cannot_be_begun_says_why(process, judged):
    assert process.reset_config(
        {"trial": "t", "judged": judged, "prefix_reuse": {}, "spec": {"attack": "badnetz"}}
    )
    report = process.step()
    assert (report["done"], report["status"]) == (True, "failed")
    assert "badnetz" in report["error"]
    assert "badnets" in report["error"]


@pytest.mark.parametrize("own", [True, False])
def test_numbers_of_an_epoch_reach_the_driver_under_the_stages_role(process, tmp_path, own):
    stage = SimpleNamespace(length=lambda: 5)
    node = SimpleNamespace(name="supervised", recipe="r", stage=stage)
    process.trial, process._noted_at = "t", 0.0
    process.graph = SimpleNamespace(roles={"r": "retrain"} if own else {})  # else a stage of the baseline
    watcher = Silent()
    with _watching(tmp_path, watcher):
        process._note(SimpleNamespace(what="tick", node=node, tick=Tick(2, 5, {"loss": 0.5}, lambda: None)))
        note = json.loads((tmp_path / "t.json").read_text())
        assert (note["epoch"], note["epochs"]) == (2, 5)
        eventually(lambda: watcher.seen)
    assert watcher.seen == {("t", "supervised", 2, 5)}
    assert watcher.curves == ({("t", "retrain"): {2: {"loss": 0.5}}} if own else {})


def eventually(holds, seconds=30.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    assert holds()

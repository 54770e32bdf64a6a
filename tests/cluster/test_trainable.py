"""The process of a trial, without Ray around it."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from bdtune.cluster import trainable
from bdtune.cluster.live_notes import LiveNotes
from bdtune.cluster.sweep import _watching
from bdtune.cluster.trainable import Trial
from bdtune.engine.stage import Tick
from tests.cluster.sweeping import Silent


@pytest.fixture
def process(tmp_path):
    trial = Trial.__new__(Trial)
    trial.store = None
    trial.shared = SimpleNamespace(mode="max", objective=None, live=tmp_path, live_s=20.0)
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


def test_notes_between_stages_are_as_rare_as_was_asked_for_and_a_new_stage_is_noted_at_once(
    process, tmp_path, monkeypatch
):
    stage = SimpleNamespace(length=lambda: 5)
    node = SimpleNamespace(name="supervised", recipe="r", stage=stage)
    process.trial, process._noted_at, process.graph = "t", -100.0, SimpleNamespace(roles={})
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=0.0)
    monkeypatch.setattr(trainable, "time", clock)
    notes, found = LiveNotes(tmp_path), []
    for second in range(60):
        clock.now = float(second)
        what = "started" if second in (0, 30) else "tick" if second % 2 else "waiting"
        tick = Tick(second, 60, {}, lambda: None) if what == "tick" else None
        process._note(SimpleNamespace(what=what, node=node, tick=tick))
        found += [(second, note["what"]) for note in notes.new()]
    assert found == [(0, "started"), (20, "waiting"), (30, "started"), (50, "waiting")]
    assert list(notes.new()) == [], "a note is read once"


def eventually(holds, seconds=30.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    assert holds()

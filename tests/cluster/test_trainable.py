"""The process of a trial, without Ray around it."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace

import pytest

from bdtune.cluster import trainable
from bdtune.cluster.driver import CUT_OFF
from bdtune.cluster.live_notes import LiveNotes
from bdtune.cluster.shared import DEFAULTS, GIVEN, Variables
from bdtune.cluster.sweep import _watching
from bdtune.cluster.trainable import Trial
from bdtune.engine.stage import Tick
from bdtune.errors import OutageError
from tests.cluster.sweeping import Silent

FIRST = {"starts_with": "", "company": []}
"""Of a trial that is released for its first stage, which is computed alone."""


@pytest.fixture
def process(tmp_path):
    trial = Trial.__new__(Trial)
    trial.store = None
    trial.shared = SimpleNamespace(mode="max", objective=None, live=tmp_path, live_s=20.0)
    return trial


@pytest.mark.parametrize("judged", [False, True])
def test_a_trial_that_cannot_be_begun_says_why(process, judged):
    assert process.reset_config(
        {"trial": "t", "judged": judged, "prefix_reuse": {}, **FIRST, "spec": {"attack": "badnetz"}}
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


@pytest.mark.parametrize(("judged", "aside"), [(False, True), (True, False)])
def test_a_trial_ends_before_a_stage_that_may_be_computed_with_those_of_others(process, judged, aside):
    process.judged, process._starts_with = judged, "first"
    events = [
        (what, SimpleNamespace(recipe=recipe))
        for what, recipe in [("joinable", "first"), ("computed", "first")]
    ]
    first, done = (SimpleNamespace(what=what, node=node) for what, node in events)
    other = SimpleNamespace(what="joinable", node=SimpleNamespace(recipe="other"))
    assert not process._goes_aside(first), "it was released for this one"
    assert not process._goes_aside(other), "nothing was done yet: the driver sees the store otherwise"
    assert not process._goes_aside(done)
    assert process._goes_aside(other) is aside


def test_what_a_stage_remarks_reaches_the_driver_and_stays_until_the_next_stage(process, tmp_path):
    node = SimpleNamespace(name="supervised", recipe="r", stage=SimpleNamespace(length=lambda: 5))
    process.trial, process._noted_at, process.graph = "t", 0.0, SimpleNamespace(roles={})
    process.shared.live_s = 0.0
    watcher = Silent()

    def note(what, epoch=None):
        tick = None if epoch is None else Tick(epoch, 5, {}, lambda: None)
        process._note(SimpleNamespace(what=what, node=node, tick=tick))
        return json.loads((tmp_path / "t.json").read_text())

    with _watching(tmp_path, watcher):
        note("started")
        note("tick", 2)
        process._note_remark(node, "out of memory")
        line = json.loads((tmp_path / "t.json").read_text())
        assert (line["epoch"], line["epochs"], line["remarks"]) == (2, 5, ["out of memory"])
        assert note("tick", 3)["remarks"] == ["out of memory"]
        eventually(lambda: watcher.remarks)
    assert watcher.remarks == {("t", "supervised", "out of memory")}
    assert note("started")["remarks"] == []


class Gone(Exception):
    """Stands for the end of the process."""


def gone():
    raise Gone


@pytest.fixture
def leaving(process, monkeypatch):
    """A trial whose node is to be taken away, and what it does about that."""
    monkeypatch.setattr(trainable, "exit_actor", gone)
    did = []
    process._notice = SimpleNamespace(given=lambda: True)
    process.executor = SimpleNamespace(save_soon=lambda: did.append("save"))
    process._walk = SimpleNamespace(close=lambda: did.append("release"))
    return process, did


def test_a_node_that_is_to_be_taken_away_is_left_once_the_stage_has_saved_its_state(leaving):
    process, did = leaving
    process._leave_in_time(SimpleNamespace(what="tick"))
    assert did == ["save"]
    with pytest.raises(Gone):
        process._leave_in_time(SimpleNamespace(what="tick"))
    assert did == ["save", "release"]


@pytest.mark.parametrize("what", ["started", "computed", "waiting"])
def test_between_stages_it_is_left_at_once(leaving, what):
    process, did = leaving
    with pytest.raises(Gone):
        process._leave_in_time(SimpleNamespace(what=what))
    assert did == ["release"]


def test_a_process_that_did_not_reach_the_store_serves_no_other_trial(process, monkeypatch):
    monkeypatch.setattr(trainable, "exit_actor", gone)
    process.reset_config({"trial": "t", "judged": False, "prefix_reuse": {}, **FIRST, "spec": {}})
    process._unready = OutageError("s3://bucket does not answer")
    report = process.step()
    assert (report["status"], report["error"]) == (CUT_OFF, "s3://bucket does not answer")
    with pytest.raises(Gone):
        process.reset_config({"trial": "u", "judged": False, "prefix_reuse": {}, **FIRST, "spec": {}})


def test_a_nodes_own_cache_and_endpoint_come_before_the_drivers(monkeypatch):
    for name in (*GIVEN, *DEFAULTS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BDTUNE_CACHE", "/driver/cache")
    monkeypatch.setenv("AWS_REGION", "eu-1")
    monkeypatch.setenv("BDTUNE_PLUGINS", "/driver/plugins")
    variables = Variables.of_this_process()
    monkeypatch.setenv("BDTUNE_CACHE", "/node/cache")
    monkeypatch.setenv("BDTUNE_PLUGINS", "/node/plugins")
    monkeypatch.delenv("AWS_REGION")
    variables.adopt()
    assert os.environ["BDTUNE_CACHE"] == "/node/cache"
    assert os.environ["AWS_REGION"] == "eu-1"
    assert os.environ["BDTUNE_PLUGINS"] == "/driver/plugins"


def eventually(holds, seconds=30.0):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    assert holds()

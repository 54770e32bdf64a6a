"""The process of a trial, without Ray around it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bdtune.cluster.trainable import Trial


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

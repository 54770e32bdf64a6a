from __future__ import annotations

import json
import math

import pytest

from bdtune.knobs import short_names
from bdtune.trials.results import DataUse, StageUse, SweepResult, TrialResult, show

TRIAL = TrialResult(
    id="a",
    status="done",
    params={"dataset": "digits", "defense.beta_nd": 0.6, "flag": True, "none": None, "seed": 1},
    metrics={"acc": 0.99, "asr": 0.5},
    stages={
        "simclr": StageUse("k" * 16, True, 3.5, bytes=7, read=5, fetched=3, served=2),
        "late": StageUse("l" * 16, False, 2.0, bytes=9),
    },
    baseline_id="r",
    asr_band=0.95,
    data=DataUse("digits", "abc"),
    curves={"simclr": [{"epoch": 1.0, "loss": 0.5}]},
    started=1.5,
    ended=2.5,
)


def test_a_trial_survives_json():
    text = json.dumps(TRIAL.to_json(curves=True), allow_nan=False)
    assert TrialResult.from_json(json.loads(text)) == TRIAL
    assert "curves" not in TRIAL.to_json()


def test_numbers_that_are_not_finite_become_null():
    trial = TrialResult("a", "diverged", metrics={"acc": math.nan, "asr": math.inf})
    value = json.loads(json.dumps(trial.to_json(), allow_nan=False))
    assert value["metrics"] == {"acc": None, "asr": None}
    assert math.isnan(TrialResult.from_json(value).metrics["acc"])


@pytest.mark.parametrize(
    "value",
    [{}, {"id": "a"}, {"id": "a", "status": "odd", "metrics": {}}, {**TRIAL.to_json(), "more": 1}, None],
)
def test_another_shape_is_refused(value):
    with pytest.raises(ValueError):
        TrialResult.from_json(value)


def test_a_sweep_sums_up_and_survives_json():
    sweep = SweepResult("s", (TRIAL, TrialResult("b", "failed", error="boom")), best="a")
    assert SweepResult.from_json(json.loads(json.dumps(sweep.to_json()))).to_json() == sweep.to_json()
    assert sweep.summary() == {
        "trials": 2,
        "status": {"done": 1, "failed": 1},
        "stages_computed": 1,
        "stages_shared": 1,
        "seconds_computed": 3.5,
        "seconds_saved": 2.0,
        "bytes_written": 7,
        "bytes_read": 5,
        "bytes_fetched": 3,
        "bytes_served": 2,
    }
    assert list(sweep.to_json())[:3] == ["sweep", "trials", "best"]
    with pytest.raises(ValueError):
        SweepResult.from_json({"sweep": "s"})


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["defense.beta_nd", "seed"], ["beta_nd", "seed"]),
        (["defense.simclr.epochs", "defense.supervised.epochs"], ["simclr.epochs", "supervised.epochs"]),
        (["defense.name", "attack.name"], ["defense", "attack"]),
        (["epochs", "defense.epochs"], ["epochs", "defense.epochs"]),
        (["defense", "defense.name"], ["defense", "defense.name"]),
    ],
)
def test_short_names_are_short_and_unique(paths, expected):
    assert list(short_names(paths).values()) == expected


def test_values_look_as_in_yaml():
    assert [show(v) for v in (None, True, False, 0.1, 1e-5, 3, "x")] == [
        "none", "true", "false", "0.1", "1e-05", "3", "x",
    ]  # fmt: skip

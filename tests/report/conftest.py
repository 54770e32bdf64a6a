from __future__ import annotations

import pytest

from bdtune.trials.results import StageUse, SweepResult, TrialResult

BASE = {"dataset": "digits", "attack.name": "badnets", "attack.rate": 0.1, "model.name": "resnet18"}


@pytest.fixture
def make_trial():
    def make(id_: str, seed: int = 0, *, acc: float = 0.98, asr: float = 0.01, **changes) -> TrialResult:
        knobs = changes.pop("knobs", {"defense.beta_nd": 0.6})
        der = (max(0.0, 1.0 - asr) - max(0.0, 0.99 - acc) + 1) / 2
        metrics = {"acc": acc, "asr": asr, "ra": 0.9 * (1 - asr), "der": der, "undefended/asr": 1.0}
        values = {
            "id": id_,
            "status": "done",
            "params": {**BASE, "defense.name": "gssd", **knobs, "seed": seed},
            "metrics": metrics,
            "stages": {
                "simclr": StageUse("a" * 16, computed=seed == 0, seconds=20.0),
                "supervised": StageUse("b" * 16, computed=True, seconds=5.0),
            },
            "asr_band": 0.95,
            **changes,
        }
        if values["status"] != "done":
            values["metrics"] = {}
        return TrialResult(**values)

    return make


@pytest.fixture
def make_baseline():
    def make(id_: str, seed: int = 0, *, acc: float = 0.99, asr: float = 1.0) -> TrialResult:
        params = {**BASE, "defense.name": "none", "seed": seed}
        metrics = {"acc": acc, "asr": asr, "ra": 0.0}
        return TrialResult(id_, "done", params, metrics, is_baseline=True, asr_band=0.95)

    return make


@pytest.fixture
def sweep(make_trial, make_baseline) -> SweepResult:
    """Two undefended models, a setting that fails visibly, a good one, and one with a diverged seed."""
    trials = [
        make_trial("bad0", 0, asr=1.0, knobs={"defense.beta_nd": 0.6}),
        make_trial("bad1", 1, asr=0.98, knobs={"defense.beta_nd": 0.6}),
        make_trial("good1", 1, acc=0.98, asr=0.02, knobs={"defense.beta_nd": 3.0}),
        make_trial("good0", 0, acc=0.96, asr=0.0, knobs={"defense.beta_nd": 3.0}),
        make_trial("half0", 0, acc=0.99, asr=0.0, knobs={"defense.beta_nd": 1.5}),
        make_trial("half1", 1, status="diverged", error="Traceback\nnan", knobs={"defense.beta_nd": 1.5}),
        make_baseline("ref0", 0),
        make_baseline("ref1", 1, acc=0.98),
    ]
    return SweepResult("small", tuple(trials), best="good0")

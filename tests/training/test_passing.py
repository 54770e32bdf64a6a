"""Trainings whose rate is constant pass, epoch by epoch, what shorter ones end with."""

from __future__ import annotations

import pytest

from bdtune.defenses.aabl.losses import Naive
from bdtune.defenses.abl.training import Isolate, Unlearn
from bdtune.defenses.lfd import Student, Teacher
from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Context
from bdtune.training.supervised import Supervised

CTX = Context(seed=2, numerics=Numerics(device="cpu", precision="fp32"))


@pytest.mark.parametrize("kind", [Teacher, Naive, Isolate])
def test_a_tick_is_the_end_of_a_shorter_training_to_the_bit(kind, make_set, everything, tiny):
    data = make_set(24)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    stage = kind(epochs=3, batch_size=8)
    ticks = {tick.epoch: tick.artefact() for tick in stage.steps(CTX, **inputs) if tick.epoch < 3}
    for epochs, passed in ticks.items():
        ended = stage.at(epochs).run(CTX, **inputs)
        assert passed.info == ended.info
        assert {name: a.shape for name, a in passed.arrays.items()} == {
            name: a.shape for name, a in ended.arrays.items()
        }
        assert digest_of(passed.arrays, passed.info) == digest_of(ended.arrays, ended.info)
        assert [row["loss"] for row in passed.curve] == [row["loss"] for row in ended.curve]


JUDGED = [Supervised(schedule="constant"), Student(), Unlearn()]
FALLING = [Teacher(schedule="cosine"), Naive(schedule="multistep")]


@pytest.mark.parametrize("stage", [*JUDGED, *FALLING])
def test_what_a_scheduler_judges_or_whose_rate_falls_passes_nothing(stage):
    assert stage.at(1) is None
    assert Teacher().at(0) is None

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bdtune.defenses.gssd import FineTune
from bdtune.defenses.lfd import Student, Teacher
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context, NotComputed, Tick
from bdtune.errors import Diverged, UserError
from bdtune.plugins.network import Pooled
from bdtune.training import fused
from bdtune.training.supervised import Supervised

FP32 = Numerics(device="cpu", precision="fp32", fused=8)
BF16 = Numerics(device="cpu", precision="bf16", fused=8)


def job(stage, seed, data, subset, model, checkpoint=None, numerics=FP32, **inputs):
    ctx = Context(seed=seed, numerics=numerics)
    if checkpoint is not None:
        ctx = replace(ctx, checkpoint=checkpoint)
    return stage, ctx, {"data": data, "subset": subset, "model": model, **inputs}


def together(jobs):
    """Return each job's last outcome, and its ticks."""
    ticks, ends = [[] for _ in jobs], {}
    for number, outcome in jobs[0][0].together(jobs):
        assert number not in ends, "nothing comes after the end"
        if isinstance(outcome, Tick):
            ticks[number].append(outcome)
        else:
            ends[number] = outcome
    return [ends[number] for number in range(len(jobs))], ticks


def alone(each):
    stage, ctx, inputs = each
    return stage.run(ctx, **inputs)


def assert_alike(one, other, tolerance=2e-4):
    assert one.info == other.info
    assert [set(row) for row in one.curve] == [set(row) for row in other.curve]
    for row, single in zip(one.curve, other.curve, strict=True):
        assert row["loss"] == pytest.approx(single["loss"], abs=10 * tolerance)
        assert row["lr"] == single["lr"]
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert (array.dtype, array.shape) == (other.arrays[name].dtype, other.arrays[name].shape)
        np.testing.assert_allclose(
            array, other.arrays[name], atol=10 * tolerance, rtol=tolerance, err_msg=name
        )


SMALL = {"batch_size": 16, "epochs": 2, "lr": 0.01}


@pytest.fixture
def jobs(make_set, everything, tiny):
    """Make jobs that differ in their numbers, images and subsets."""

    def make(count=3, numerics=FP32, slots=(None,) * 8, **knobs):
        found = []
        for number in range(count):
            data = make_set(64, seed=number)
            own = {**SMALL, "lr": 0.01 * (number + 1), "weight_decay": 1e-3 * number, **knobs}
            subset = everything(data, np.arange(number, 64 - 5 * number))
            found.append(job(Supervised(**own), number, data, subset, tiny, slots[number], numerics))
        return found

    return make


def test_members_with_rates_subsets_and_seeds_of_their_own_are_as_each_alone(jobs):
    members = jobs()
    ends, ticks = together(members)
    for end, own, each in zip(ends, ticks, members, strict=True):
        single = alone(each)
        assert_alike(end, single)
        assert [tick.epoch for tick in own] == [1, 2]
        assert own[0].metrics.keys() == {"loss", "acc", "lr"}
    losses = {end.curve[-1]["loss"] for end in ends}
    assert len(losses) == 3


@pytest.mark.parametrize(
    "knobs",
    [
        [{"optimizer": "adam"}, {"optimizer": "sgd", "momentum": 0.5}, {"optimizer": "adamw"}],
        [{"nesterov": True}, {"augment": "cutout"}, {"augment": "resized_crop_flip", "schedule": "cosine"}],
    ],
    ids=["optimizers", "rules"],
)
def test_other_knobs_may_differ_too(jobs, knobs):
    members = [
        (stage.model_copy(update={"lr": 0.002, **own}), *rest)
        for (stage, *rest), own in zip(jobs(), knobs, strict=True)
    ]
    for end, each in zip(together(members)[0], members, strict=True):
        assert_alike(end, alone(each), 2e-3)


def test_bf16_is_as_near_as_bf16_can_be(jobs):
    members = jobs(numerics=BF16)
    for end, each in zip(together(members)[0], members, strict=True):
        assert end.curve[0]["loss"] == pytest.approx(alone(each).curve[0]["loss"], rel=0.05)


@pytest.fixture
def sizes(monkeypatch):
    """How many members each pass of a fused network has had."""
    seen = []
    forward = fused.FusedNetwork.forward
    monkeypatch.setattr(
        fused.FusedNetwork,
        "forward",
        lambda self, *given: seen.append(self.members) or forward(self, *given),
    )
    return seen


def test_the_first_step_of_all_is_computed_as_one(jobs, sizes):
    members = jobs(epochs=1)  # of 64, 58 and 52 images: four, four and four batches, the last of other sizes
    together(members)
    assert sizes == [3, 3, 3, 3], "a rehearsal, and three full batches"


def test_on_a_cpu_no_more_are_computed_as_one_than_its_cache_holds(jobs, sizes, monkeypatch):
    monkeypatch.setattr(fused, "CACHED", 2 * 16 * 4 * 16 * 16 * 4)  # two batches of maps of four channels
    members = jobs(count=5, epochs=1)
    ends, _ = together(members)
    assert sizes[:3] == [5, 2, 2], "the fifth is computed alone"
    for end, each in zip(ends, members, strict=True):
        assert_alike(end, alone(each))


def test_shorter_ones_leave_and_the_others_go_on(jobs):
    members = [
        (stage.model_copy(update={"epochs": epochs}), *rest)
        for (stage, *rest), epochs in zip(jobs(), (3, 1, 2), strict=True)
    ]
    ends, ticks = together(members)
    assert [len(own) for own in ticks] == [3, 1, 2]
    for end, each in zip(ends, members, strict=True):
        assert_alike(end, alone(each), 1e-3)


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("epochs", [1, 2])
def test_one_that_diverges_leaves_the_others_untouched(jobs, who, epochs):
    members = jobs(epochs=epochs)
    stage, *rest = members[who]
    members[who] = (stage.model_copy(update={"lr": 1e9}), *rest)
    ends, _ = together(members)
    assert isinstance(ends[who], Diverged)
    for number, (end, each) in enumerate(zip(ends, members, strict=True)):
        if number != who:
            assert_alike(end, alone(each), 1e-3)


def test_a_loss_that_fails_within_an_epoch_takes_its_member_out_at_once(jobs):
    members = jobs()
    steps = []

    class Watched(Supervised):
        def parts(self, fit):
            loss = fit.loss

            def failing(logits, batch):
                steps.append(len(batch.labels))
                if len(steps) == 2:
                    raise ZeroDivisionError("of this member alone")
                return loss(logits, batch)

            fit.loss = failing
            return ()

    stage, *rest = members[1]
    members[1] = (Watched(**stage.model_dump()), *rest)
    ends, _ = together(members)
    assert isinstance(ends[1], ZeroDivisionError)
    assert len(steps) == 2
    for number in (0, 2):
        assert_alike(ends[number], alone(members[number]))


def test_what_concerns_all_is_raised(jobs, monkeypatch):
    def refuse(*given):
        raise UserError("no place on the disk")

    monkeypatch.setattr(fused.FitTraining, "epoch_over", refuse)
    with pytest.raises(UserError, match="no place"):
        together(jobs())


def test_an_empty_subset_ends_at_once(jobs, everything):
    members = jobs()
    stage, ctx, inputs = members[1]
    members[1] = (stage, ctx, {**inputs, "subset": everything(inputs["data"], [])})
    stage, ctx, inputs = members[2]
    init = alone(members[2])
    members[2] = (stage, ctx, {**inputs, "subset": everything(inputs["data"], []), "init": init})
    ends, _ = together(members)
    assert isinstance(ends[1], Diverged)
    assert ends[2].info["skipped"]
    assert_alike(ends[0], alone(members[0]))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("after", ["together", "alone", "fewer"])
def test_a_killed_group_goes_on_from_its_members_checkpoints(jobs, memory, optimizer, after):
    knobs = {"epochs": 3, "optimizer": optimizer}
    whole, _ = together(jobs(**knobs))
    slots = [memory(due_after=[1]) for _ in range(3)]
    steps = fused.train_together(jobs(slots=slots, **knobs))
    for number, outcome in steps:
        if number == 2 and outcome.epoch == 2:
            break
    steps.close()
    assert [slot.state[1]["done"] for slot in slots] == [1, 1, 1]
    own = memory(due_after=[1])
    stage, ctx, inputs = jobs(slots=[own] * 3, **knobs)[0]
    next(stage.steps(ctx, **inputs))
    assert slots[0].state[0].keys() == own.state[0].keys(), "a checkpoint is the single training's"
    again = jobs(slots=slots, **knobs)
    if after == "together":
        for end, expected in zip(together(again)[0], whole, strict=True):
            for name, array in expected.arrays.items():
                np.testing.assert_array_equal(end.arrays[name], array, err_msg=name)
        return
    ends = [alone(each) for each in again] if after == "alone" else together(again[1:])[0]
    for end, expected in zip(ends, whole if after == "alone" else whole[1:], strict=True):
        assert_alike(end, expected, 2e-3)


def test_teachers_students_and_tunings_too(make_set, everything, tiny):
    data = make_set(48)
    subset = everything(data)
    weights = [Artefact({"weights": np.linspace(-0.1 * n, 1, 48, dtype=np.float32)}) for n in (1, 2)]
    init = alone(job(Supervised(**SMALL), 0, data, subset, tiny))
    kinds = {
        Teacher: [{}, {}],
        Student: [{"weights": each} for each in weights],
        FineTune: [{"init": init}, {"init": init}],
    }
    for kind, inputs in kinds.items():
        knobs = {"epochs": 2, "batch_size": 16, "lr": 1e-3}
        more = {"clip_norm": 0.5} if kind is Student else {}
        members = [
            job(kind(**knobs, **(more if seed else {})), seed, data, subset, tiny, **own)
            for seed, own in enumerate(inputs)
        ]
        for end, each in zip(together(members)[0], members, strict=True):
            assert_alike(end, alone(each), 1e-3)


class Mixing(Pooled):
    def features(self, images):
        return nn.functional.normalize(super().features(images))


class MixingModel:
    """A network whose members cannot be computed as one."""

    def build(self, num_classes, image_shape):
        return Mixing(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 4, num_classes)


def test_networks_that_cannot_be_one_are_trained_alone(jobs, caplog):
    members = [(stage, ctx, {**inputs, "model": MixingModel()}) for stage, ctx, inputs in jobs()]
    ends, _ = together(members)
    assert_alike(ends[0], alone(members[0]), 0)
    assert all(isinstance(end, NotComputed) for end in ends[1:])
    assert "depend on one another" in caplog.text


def test_members_that_do_not_fit_on_the_device_are_left_out(jobs, monkeypatch):
    rehearse = fused.rehearse

    def small(network, networks, inputs):
        if len(networks) > 2:
            raise torch.OutOfMemoryError("no place on the device")
        return rehearse(network, networks, inputs)

    monkeypatch.setattr(fused, "rehearse", small)
    members = jobs(count=5)
    ends, _ = together(members)
    assert [isinstance(end, NotComputed) for end in ends] == [False, False, True, True, True]
    for end, each in zip(ends[:2], members[:2], strict=True):
        assert_alike(end, alone(each))


def test_random_numbers_outside_are_left_as_they_are(jobs):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    together(jobs())
    assert torch.equal(before, torch.get_rng_state())

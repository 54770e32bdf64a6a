"""What a training step takes of a device, from shapes alone, and what is said where that is too much."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

import bdtune
from bdtune.engine.numerics import Numerics
from bdtune.engine.remarks import heard
from bdtune.engine.stage import Context
from bdtune.training import memory as module
from bdtune.training.fine_tune import FineTune
from bdtune.training.flows import Flows
from bdtune.training.loop import descend, make_optimizer
from bdtune.training.memory import Room, needed, room_on, shortage, step_memory
from bdtune.training.session import autocast, dtype_of
from bdtune.training.simclr import SimCLR
from bdtune.training.supervised import Supervised
from tests.doubles import CPU

GB = 10**9
SHAPE = (32, 32, 3)


def measured(model, images, numerics):
    """Return the most bytes that torch's allocator held during two steps on a CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        network = model.build(10, SHAPE).to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(network.parameters(), "sgd", 0.1)
        inputs = torch.rand(images, 3, 32, 32, dtype=dtype_of(numerics))
        inputs, labels = inputs.to(memory_format=torch.channels_last), torch.zeros(images, dtype=torch.int64)
        for _ in range(2):
            with autocast(numerics):
                logits = network(inputs)
            loss = cross_entropy(logits.float(), labels)
            descend(optimizer, loss)
            del logits, loss
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "knobs", "images"),
    [("resnet18", {"width": 16}, 64), ("vgg_s", {}, 256), ("wrn", {}, 64), ("mobilenet_v2", {}, 32)],
)
def test_the_estimate_is_near_what_the_allocator_gives_out(name, knobs, images, precision):
    model, numerics = bdtune.model(name, **knobs), Numerics(device="cpu", precision=precision)
    estimate = step_memory(model, 10, SHAPE, images, moments=1, numerics=numerics)
    found = measured(model, images, numerics)
    assert 0.9 < estimate.step / found < 1.01, (estimate, found)


def test_its_parts_are_those_of_the_shapes():
    model = bdtune.model("resnet18", width=16)
    network = model.build(10, SHAPE)
    weights = sum(4 * each.numel() for each in network.parameters())
    buffers = sum(each.nbytes for each in network.buffers())
    small, large = (step_memory(model, 10, SHAPE, n, moments=2, numerics=CPU) for n in (32, 64))
    assert (small.weights, small.gradients, small.optimizer) == (weights + buffers, weights, 2 * weights)
    assert large.activations == pytest.approx(2 * small.activations, rel=0.01)
    assert (small.batch, small.batch_norm) == (32, True)
    assert not step_memory(bdtune.model("lenet_s"), 10, SHAPE, 8, moments=0, numerics=CPU).batch_norm


def test_nothing_is_allocated_and_no_random_number_is_drawn():
    before = torch.get_rng_state()
    estimate = step_memory(bdtune.model("resnet18"), 10, SHAPE, 10**6, moments=1, numerics=CPU)
    assert estimate.activations > 4000 * GB
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("stage", "batch", "moments"),
    [
        (Supervised(batch_size=64), 64, 1),
        (Supervised(batch_size=64, momentum=0.0), 64, 0),
        (Supervised(batch_size=64, optimizer="adam"), 64, 2),
        (Supervised(batch_size=512), 96, 1),
        (SimCLR(batch_size=40), 80, 2),
        (FineTune(batch_size=16), 16, 1),
    ],
)
def test_a_stage_says_how_many_images_pass_together(make_set, everything, tiny, stage, batch, moments):
    data = make_set()
    need = needed(stage, {"data": data, "model": tiny, "subset": everything(data)}, CPU)
    assert need.batch == batch
    assert need.optimizer == moments * need.gradients
    assert need.images == data.images.nbytes


def test_a_micro_batch_needs_less_where_it_is_heeded(make_set, tiny):
    data, stage = make_set(), Supervised(batch_size=64)
    numerics = CPU.model_copy(update={"micro_batch": 8})
    assert needed(stage, {"data": data, "model": bdtune.model("lenet_s")}, numerics).batch == 8
    assert needed(stage, {"data": data, "model": tiny}, numerics).batch == 64, "it has batch norm"


def test_where_shapes_say_nothing_there_is_no_estimate(make_set):
    assert needed(Flows(), {"data": make_set(), "features": None}, CPU) is None


def test_a_cpu_has_no_room_to_look_at():
    assert room_on(torch.device("cpu")) is None


def test_the_room_is_what_the_process_may_still_take(monkeypatch):
    facts = {"mem_get_info": (30 * GB, 80 * GB), "memory_allocated": 4 * GB, "memory_reserved": 10 * GB}
    facts["get_per_process_memory_fraction"] = 1.0
    for name in tuple(facts):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name: facts[name])
    assert room_on(torch.device("cuda")) == Room(36 * GB, 80 * GB), "what it keeps for later is its own"
    facts["get_per_process_memory_fraction"] = 0.25
    assert room_on(torch.device("cuda")) == Room(16 * GB, 80 * GB)


@pytest.fixture
def with_room(monkeypatch):
    """Give the device so many bytes of room, for what is said before a training."""
    return lambda free: monkeypatch.setattr(module, "room_on", lambda device: Room(free, 80 * GB))


def said_by(stage, **inputs):
    """Return what a stage remarks before its first epoch, and how it goes on."""
    found = []
    with heard(lambda text, info: found.append(text)):
        steps = stage.steps(Context(seed=1, numerics=CPU), **inputs)
        next(steps)
    steps.close()
    return found


def test_a_training_that_does_not_fit_says_so_before_it_begins(make_set, everything, tiny, with_room):
    data, stage = make_set(), Supervised(epochs=2, batch_size=32)
    inputs = {"data": data, "subset": everything(data), "model": tiny}
    need = needed(stage, inputs, CPU)
    with_room(need.step // 2)
    [text] = said_by(stage, **inputs)
    assert text.startswith("a step on 32 images needs about ")
    assert " activations, " in text
    assert " of 80 GB free. Make batch_size or the network smaller" in text
    assert "numerics.micro_batch" not in text, "the network has batch norm"
    with_room(10 * need.step + need.images)
    assert said_by(stage, **inputs) == []


def test_a_network_without_batch_norm_is_advised_to_pass_in_parts(make_set, everything, with_room):
    data, stage = make_set(), Supervised(epochs=2, batch_size=32)
    with_room(1000)
    [text] = said_by(stage, data=data, subset=everything(data), model=bdtune.model("lenet_s"))
    assert "set numerics.micro_batch" in text


def test_a_data_set_that_would_fill_the_device_stays_off_it(make_set, tiny):
    need = needed(Supervised(batch_size=32), {"data": make_set(), "model": tiny}, CPU)
    room = Room(need.step + 10, 80 * GB)
    large = module.replace(need, images=room.free)
    assert shortage(large, room) == ""
    assert " data set)" in shortage(module.replace(need, images=room.free // 2), room)


def test_a_network_that_cannot_be_estimated_is_trained_all_the_same(
    make_set, everything, tiny, with_room, monkeypatch
):
    def broken(*_args, **_kwargs):
        raise TypeError("no fake tensors, please")

    monkeypatch.setattr(module, "step_memory", broken)
    with_room(0)
    data = make_set()
    assert said_by(Supervised(epochs=2, batch_size=32), data=data, subset=everything(data), model=tiny) == []

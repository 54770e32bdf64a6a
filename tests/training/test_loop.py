from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bdtune.errors import Diverged
from bdtune.training.loop import Meter, learning_rate, make_optimizer
from bdtune.training.weights import as_tensor, load_module, load_optimizer, optimizers_arrays

CPU = torch.device("cpu")


def test_multistep_drops_at_fractions_of_the_epochs():
    rates = [
        learning_rate("multistep", 0.1, done, 200, milestones=(0.5, 0.75)) for done in (0, 99, 100, 149, 150)
    ]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("epochs", [1, 7])
def test_cosine_equals_torchs(epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for done in range(epochs):
        assert math.isclose(learning_rate("cosine", 0.3, done, epochs), optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_constant_is_constant():
    assert learning_rate("constant", 0.3, 9, 10) == 0.3


def test_meter_averages_by_samples():
    meter = Meter("here", CPU)
    meter.add(torch.tensor(1.0), 30, torch.tensor(15))
    meter.add(torch.tensor(4.0), 10, torch.tensor(0))
    assert meter.means() == (1.75, 0.375)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_meter_notices_non_finite_losses_within_an_epoch(bad):
    meter = Meter("stage: epoch 3 of 9", CPU)
    for _ in range(99):
        meter.add(torch.tensor(bad), 1)
    with pytest.raises(Diverged, match="stage: epoch 3 of 9: the loss became"):
        meter.add(torch.tensor(1.0), 1)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizer_state_round_trip_keeps_layout(name):
    def make():
        torch.manual_seed(0)
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return net, make_optimizer(net.parameters(), name, 0.1)

    def step(net, optimizer):
        optimizer.zero_grad()
        net(torch.ones(1, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    one, first = make()
    step(one, first)
    two, second = make()
    two.load_state_dict(one.state_dict())
    load_optimizer(second, optimizers_arrays({"own": first}), "optimizer.own.")
    slots = [slot for slot in second.state[two.weight].values() if slot.dim() == 4]
    assert all(slot.stride() == two.weight.stride() for slot in slots)
    step(one, first)
    step(two, second)
    assert torch.equal(one.weight, two.weight)


def test_weights_that_do_not_fit_are_refused():
    net = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="do not fit"):
        load_module(net, {"model.weight": np.zeros((2, 2), np.float32)})


def test_read_only_arrays_become_tensors_without_a_copy():
    array = np.arange(3.0)
    array.flags.writeable = False
    assert as_tensor(array).data_ptr() == array.ctypes.data


def test_scalars_stay_scalars():
    assert as_tensor(np.array(3)).shape == ()

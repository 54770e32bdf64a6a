"""A folded network gives the logits and the gradients of the one it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bdtune
from bdtune.plugins.network import Network
from bdtune.training.folded import folded


def frozen(name: str, **knobs: object) -> Network:
    """Return a network in evaluation mode whose batch norms do something, as after a training."""
    network = bdtune.model(name, **knobs).build(5, (16, 16, 3))
    torch.manual_seed(0)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for values in (part.weight.data, part.running_var):
                values.uniform_(0.5, 2)
            for values in (part.bias.data, part.running_mean):
                values.uniform_(-0.5, 0.5)
    return network.eval().requires_grad_(False)


def norms(network: object) -> int:
    assert isinstance(network, nn.Module)
    return sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())


def with_gradient(network: object, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    images = images.clone().requires_grad_()
    logits = network(images)  # type: ignore[operator]
    return logits.detach(), torch.autograd.grad(logits.square().sum(), images)[0]


@pytest.mark.parametrize(
    ("name", "knobs", "left"),
    [
        ("resnet18", {"width": 4}, 3),  # those of the shortcuts, a layer of our own
        ("preactresnet18", {"width": 4}, 9),  # those of sums: before each block, and the last one
        ("vgg_s", {}, 0),
        ("mobilenetv2_s", {}, 0),
        ("lenet_s", {}, 0),
        ("wrn", {"depth": 10}, None),
        ("densenet121", {}, None),
    ],
)
def test_logits_and_gradients_are_those_of_the_network(name: str, knobs: dict, left: int | None) -> None:
    network = frozen(name, **knobs)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    fold = folded(network)
    for ours, theirs in zip(with_gradient(fold, images), with_gradient(network, images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
    assert isinstance(fold, nn.Module)
    assert not any(weight.requires_grad for weight in fold.parameters())
    assert norms(fold) == left if left is not None else norms(fold) < norms(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_network_that_cannot_be_traced_stays_as_it_is() -> None:
    class Branching(Network):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def features(self, images_NCHW: torch.Tensor) -> torch.Tensor:
            means = images_NCHW.mean((2, 3))
            return means if means.sum() > 0 else -means

    network = Branching().eval()
    assert folded(network) is network

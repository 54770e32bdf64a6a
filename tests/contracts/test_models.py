"""What every network file must satisfy by being there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from bdtune.plugins import registry
from bdtune.plugins.model import Model

if TYPE_CHECKING:
    from bdtune.plugins.network import Network


def build(name, num_classes=3, side=16, channels=3) -> Network:
    cls = registry.load("models", name)
    knobs = {"width": 4} if "width" in cls.model_fields else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**knobs).build(num_classes, (side, side, channels))


@pytest.mark.parametrize("name", registry.names("models"))
def test_describes_itself(name):
    assert issubclass(registry.load("models", name), Model)
    description = registry.describe("models", name)
    assert description.summary
    assert description.source


@pytest.mark.parametrize("name", registry.names("models"))
@pytest.mark.parametrize("side", [16, 32, pytest.param(64, marks=pytest.mark.slow)])
def test_shapes(name, side):
    network = build(name, side=side).eval()
    images = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        features = network.features(images)
        logits, on_top = network(images), network.head(features)
    assert features.shape == (2, network.feature_dim)
    assert logits.shape == (2, 3)
    torch.testing.assert_close(on_top, logits)


@pytest.mark.parametrize("name", registry.names("models"))
def test_gradients_reach_every_weight(name):
    network = build(name).train()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 0])).backward()
    missing = [key for key, weight in network.named_parameters() if weight.grad is None]
    assert not missing


@pytest.mark.parametrize("name", registry.names("models"))
def test_channels_last_and_grey_images(name):
    network = build(name, channels=1).eval()
    images = torch.rand(2, 1, 16, 16)
    with torch.inference_mode():
        plain = network(images)
        last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", registry.names("models"))
def test_weights_follow_the_seed(name):
    one, two = build(name).state_dict(), build(name).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)

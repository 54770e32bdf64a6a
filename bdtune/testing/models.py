"""What every network promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bdtune.plugins import registry
from bdtune.testing.described import check_described

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.plugins.network import Network


def small_network(name: str, side: int = 16, channels: int = 3) -> Network:
    """Return a network by name for three classes, as narrow as its `width` allows."""
    cls = registry.load("models", name)
    knobs = {"width": 4} if "width" in cls.model_fields else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Network = cls(**knobs).build(3, (side, side, channels))
    return network


def check_shapes(name: str) -> None:
    """Features are [N, feature_dim], logits [N, K], and the head maps the one to the other."""
    for side in (16, 32, 64):
        network = small_network(name, side).eval()
        images = torch.rand(2, 3, side, side)
        with torch.inference_mode():
            features = network.features(images)
            logits, on_top = network(images), network.head(features)
        assert features.shape == (2, network.feature_dim)
        assert logits.shape == (2, 3)
        torch.testing.assert_close(on_top, logits)


def check_gradients(name: str) -> None:
    """Gradients reach every weight."""
    network = small_network(name).train()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 0])).backward()
    assert not [key for key, weight in network.named_parameters() if weight.grad is None]


def check_grey_and_channels_last(name: str) -> None:
    """Grey images and channels-last memory give the same logits."""
    network = small_network(name, channels=1).eval()
    images = torch.rand(2, 1, 16, 16)
    with torch.inference_mode():
        plain = network(images)
        last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, rtol=1e-3, atol=1e-4)


def check_seed(name: str) -> None:
    """Equal seeds give equal weights."""
    one, two = small_network(name).state_dict(), small_network(name).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def check_layers(name: str) -> None:
    """Each weight is in one named layer, and what layers compute can be had with gradients."""
    network = small_network(name).eval()
    weights = [weight for layer in network.layers.values() for weight in layer.parameters()]
    assert {id(weight) for weight in weights} == {id(weight) for weight in network.parameters()}
    assert len(weights) == len(list(network.parameters()))
    images = torch.rand(2, 3, 16, 16)
    logits, found = network.with_layers(images, list(network.layers))
    assert [*network.layers][-1] == [*found][-1] == "head"
    torch.testing.assert_close(logits, network(images))
    torch.testing.assert_close(found["head"], logits)
    assert all(each.requires_grad for each in found.values())


CHECKS: tuple[Callable[[str], None], ...] = (
    check_shapes,
    check_gradients,
    check_grey_and_channels_last,
    check_seed,
    check_layers,
)


def check_model(name: str) -> None:
    """Check a network by name; raises `AssertionError` for the first broken promise."""
    check_described("models", name)
    for check in CHECKS:
        check(name)

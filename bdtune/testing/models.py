"""What every network promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bdtune.plugins import registry
from bdtune.plugins.network import Network
from bdtune.testing.described import check_each

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES = (16, 32, 64, 224)


def sides(name: str) -> tuple[int, ...]:
    """Return up to three sides, in pixels, of images that a network by name accepts, the smallest first."""
    found = tuple(side for side in SIDES if not registry.load("models", name)().check((side, side, 3)))
    assert found, f"expected `check` to accept images of one of {', '.join(map(str, SIDES))} pixels a side"
    return found[:3]


def small_network(name: str, side: int | None = None, channels: int = 3) -> Network:
    """Return a network by name for three classes, as narrow as its `width` allows."""
    cls, side = registry.load("models", name), side or sides(name)[0]
    knobs = {"width": 4} if "width" in cls.model_fields else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = cls(**knobs).build(3, (side, side, channels))
    assert isinstance(network, Network), f"expected `build` to return a Network, got {type(network).__name__}"
    head = getattr(network, "head", None)
    got = type(head).__name__
    assert isinstance(head, torch.nn.Linear), (
        f"expected the network's `head` to be a torch.nn.Linear, got {got}"
    )
    assert head.out_features == 3, (
        f"expected the head to give `num_classes` logits, 3, got {head.out_features}"
    )
    return network


def few_images(name: str, count: int = 2, channels: int = 3) -> torch.Tensor:
    """Return images [count, C, H, W] of the smallest size that a network by name accepts."""
    side = sides(name)[0]
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1))


def check_shapes(name: str) -> None:
    """Features are [N, feature_dim], logits [N, K], and the head maps the one to the other."""
    for side in sides(name):
        network = small_network(name, side).eval()
        images = torch.rand(2, 3, side, side)
        with torch.inference_mode():
            features = network.features(images)
            expected = (2, network.feature_dim)
            got = f"{list(features.shape)} for images of {side} pixels"
            assert features.shape == expected, f"expected `features` [N, d], here {list(expected)}, got {got}"
            logits, on_top = network(images), network.head(features)
        assert logits.shape == (2, 3), f"expected logits [2, 3] of two images, got {list(logits.shape)}"
        _close(on_top, logits, "expected the network to be its `head` on top of its `features`")


def check_gradients(name: str) -> None:
    """Gradients reach every weight."""
    network = small_network(name).train()
    images = few_images(name, 4)
    torch.nn.functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 0])).backward()
    without = [key for key, weight in network.named_parameters() if weight.grad is None]
    assert not without, f"expected a gradient for each weight; {', '.join(without)} have none"


def check_grey_and_channels_last(name: str) -> None:
    """Grey images and channels-last memory give the same logits."""
    network = small_network(name, channels=1).eval()
    images = few_images(name, channels=1)
    with torch.inference_mode():
        plain = network(images)
        last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    _close(plain, last, "expected the same logits in channels-last memory", rtol=1e-3, atol=1e-4)


def check_seed(name: str) -> None:
    """Equal seeds give equal weights."""
    one, two = small_network(name).state_dict(), small_network(name).state_dict()
    differ = [key for key in one if not torch.equal(one[key], two[key])]
    assert not differ, f"expected weights from torch's global generator alone; {', '.join(differ)} differ"


def check_layers(name: str) -> None:
    """Each weight is in one named layer, and what layers compute can be had with gradients."""
    network = small_network(name).eval()
    weights = [weight for layer in network.layers.values() for weight in layer.parameters()]
    every = {id(weight): key for key, weight in network.named_parameters()}
    apart = [key for number, key in every.items() if number not in map(id, weights)]
    assert not apart, f"expected each weight to be in one of `layers`; {', '.join(apart)} are in none"
    assert len(weights) == len(every), "expected each weight to be in one of `layers`; some are in several"
    images = few_images(name)
    logits, found = network.with_layers(images, list(network.layers))
    order = [*network.layers], [*found]
    assert order[0][-1] == order[1][-1] == "head", (
        f"expected the head to come last, got {' and '.join(map(str, order))}"
    )
    _close(logits, network(images), "expected the same logits when layers are watched")
    _close(found["head"], logits, "expected the head to give the logits")
    without = [key for key, value in found.items() if not value.requires_grad]
    assert not without, f"expected gradients through each layer; {', '.join(without)} have none"


def check_maps(name: str) -> None:
    """Feature maps are had of each group of layers, from the largest maps to the smallest, with gradients."""
    network = small_network(name).eval()
    images = few_images(name)
    logits, maps = network.with_maps(images)
    _close(logits, network(images), "expected the same logits when maps are watched")
    assert set(maps) <= set(network.layers), "expected maps by the names of layers"
    sizes = [maps_of_group.shape[2] * maps_of_group.shape[3] for maps_of_group in maps.values()]
    assert sizes == sorted(set(sizes), reverse=True), f"expected maps of falling sizes, got {sizes}"
    without = [key for key, value in maps.items() if not value.requires_grad]
    assert not without, f"expected gradients through each map; {', '.join(without)} have none"


def _close(
    one: torch.Tensor, two: torch.Tensor, expected: str, rtol: float = 1e-4, atol: float = 1e-5
) -> None:
    """Raise `AssertionError` where two tensors differ."""
    far = float((one - two).detach().abs().max())
    assert torch.allclose(one, two, rtol=rtol, atol=atol), f"{expected}; they differ by up to {far:.3g}"


CHECKS: tuple[Callable[[str], None], ...] = (
    check_shapes,
    check_gradients,
    check_grey_and_channels_last,
    check_seed,
    check_layers,
    check_maps,
)


def check_model(name: str) -> None:
    """Check a network by name; raises `AssertionError` for the first broken promise."""
    check_each("models", name, CHECKS)

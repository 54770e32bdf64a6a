"""What each network is made of, and what it makes of fixed images with fixed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bdtune.engine.key import key_of
from bdtune.plugins import registry

if TYPE_CHECKING:
    from torch import Tensor

    from bdtune.plugins.network import Network

SHAPE = (32, 32, 3)
CLASSES = 3


def parts(name: str) -> str:
    """Return a digest of the names and shapes of all that a network's state holds, at its own width."""
    with torch.device("meta"):
        network = registry.load("models", name)().build(10, SHAPE)
    return key_of({part: list(value.shape) for part, value in network.state_dict().items()})


def narrow(name: str) -> Network:
    """Return a network, a narrow one where that is a knob, with its own first weights of seed 0."""
    cls = registry.load("models", name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**({"width": 4} if "width" in cls.model_fields else {})).build(CLASSES, SHAPE).eval()


def numbers(name: str) -> list[float]:
    """Return the mean size of a network's first weights, and its logits once they are `scattered`."""
    network = narrow(name)
    weights = [value.detach().abs().mean() for value in network.parameters()]
    with torch.inference_mode():
        for value in network.state_dict().values():
            value.copy_(scattered(value))
        images = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
        logits = network(torch.cat([images, images.flip(3) ** 2]))
    found = [torch.stack(weights).mean(), *logits.flatten()]
    return [float(f"{each.item():.5g}") for each in found]


def scattered(like: Tensor) -> Tensor:
    """Return weights of He's size, near 1 where they scale channels; made without a generator."""
    i = torch.arange(like.numel())
    noise = (((i * i * 48_271 + i * 69_621) % 1_000_003) / 1_000_003 - 0.5).view(like.shape)
    return noise * (24 / like[0].numel()) ** 0.5 if like.dim() > 1 else 1 + 0.2 * noise

"""Names and shapes of a network's weights: compared with those of a file before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bdtune.plugins.model import Model

Shapes = Mapping[str, tuple[int, ...]]
"""By name."""


@lru_cache(maxsize=32)
def network_shapes(model: Model, num_classes: int, image_shape: tuple[int, int, int]) -> Shapes:
    """Return the shape of each weight and buffer of a network, by name, without making any."""
    import torch

    with torch.device("meta"):
        network = model.build(num_classes, image_shape)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def differences(have: Shapes, wanted: Shapes, owner: str) -> str:
    """Say in which names and shapes the weights `wanted`, of `owner`, differ from a network's `have`.

    Nothing when they do not.
    """
    lists = {
        f"missing in {owner}": sorted(have.keys() - wanted.keys()),
        f"only in {owner}": sorted(wanted.keys() - have.keys()),
        "of another shape": sorted(n for n in have.keys() & wanted.keys() if have[n] != wanted[n]),
    }
    lines = []
    for what, names in lists.items():
        if names:
            shapes = f" {list(wanted[names[0]])}" if names[0] in have.keys() & wanted.keys() else ""
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            lines.append(f"{names[0]}{shapes}{more} {what}")
    return "; ".join(lines)

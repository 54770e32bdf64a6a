"""Frozen networks that compute the same in fewer steps: batch norm becomes part of the convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bdtune.plugins.network import Network


def folded(network: Network) -> Callable[[Tensor], Tensor]:
    """Return a function from images [N, C, H, W] to logits [N, K], as a frozen network in evaluation mode.

    A batch norm that alone reads a convolution becomes part of its weights, so that it costs no pass over the
    maps, there or back; logits differ by rounding. A network of one's own that cannot be traced stays as it
    is. Gradients reach the images alone.
    """
    import torch
    from torch.fx.experimental.optimization import fuse

    try:
        traced = fuse(network)
    except Exception:  # whatever keeps a network's Python code from being traced
        return network
    return traced.requires_grad_(False).to(memory_format=torch.channels_last)

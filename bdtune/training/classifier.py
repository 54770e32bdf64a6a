"""A trained network as others use it: images in, logits out, with the normalisation inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from bdtune.training.weights import load_module

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from bdtune.plugins.model import Model


class Classifier(torch.nn.Module):
    """A network behind the normalisation that it was trained with.

    Takes float images [B, C, H, W] in [0, 1] and returns logits [B, K]. `mean` and `std` [C, 1, 1] are
    buffers, so that the state dict has them beside the weights, which begin with `network.`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: torch.nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of float images [B, C, H, W] in [0, 1]."""
        logits: torch.Tensor = self.network((images - self.mean) / self.std)
        return logits


def trained_classifier(
    model: Model,
    num_classes: int,
    image_shape: tuple[int, int, int],
    scale: Mapping[str, Sequence[float]],
    weights: Mapping[str, np.ndarray],
) -> Classifier:
    """Return a network with the weights of an artefact, in evaluation mode; `scale` has `mean` and `std`."""
    network = model.build(num_classes, image_shape)
    load_module(network, weights)
    return Classifier(network, scale["mean"], scale["std"]).eval()

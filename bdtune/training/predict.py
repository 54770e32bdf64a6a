"""Passing a whole set through a network in evaluation mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bdtune.plugins.network import uncompiled
from bdtune.training.augment import Augmentation
from bdtune.training.batches import images_of, in_order
from bdtune.training.micro_batches import MicroBatches
from bdtune.training.session import autocast, deterministic, device_of, dtype_of
from bdtune.training.weights import as_array, as_tensor, new_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network

    View = Callable[[torch.Tensor], torch.Tensor]
    """Makes the network's input [B, C, H, W] of images uint8 [B, H, W, C]."""

PIXELS = 512 * 32 * 32  # per batch


def trained_network(model: Model, data: ImageSet, weights: Artefact, numerics: Numerics) -> Network:
    """Return the network with an artefact's weights, on the device, in evaluation mode."""
    return new_network(model, data, 0, numerics.model_copy(update={"compile": False}), weights).eval()


def predict_features(network: Network, data: ImageSet, numerics: Numerics) -> np.ndarray:
    """Return features float32 [N, d] of all images, without augmentation, in id order.

    They are computed in the precision of `numerics`, as what is trained on them is.
    """
    return _predict(network, data, numerics, features=True)


def predict_logits(
    network: Network, data: ImageSet, numerics: Numerics, see: View | None = None
) -> np.ndarray:
    """Return logits float32 [N, K] of all images, in id order, by default without augmentation.

    They are computed in float32 whatever `numerics` says: predictions are counted, and in bf16 an image's two
    largest logits may be equal, of which argmax takes the first, often the attack's target.
    """
    return _predict(network, data, numerics.exact(), features=False, see=see)


def _predict(
    network: Network, data: ImageSet, numerics: Numerics, *, features: bool, see: View | None = None
) -> np.ndarray:
    width = network.feature_dim if features else network.head.out_features
    out = np.zeros((len(data), width), np.float32)
    device, see = device_of(numerics), see or Augmentation.of("none", data, dtype_of(numerics))
    training = network.training
    network.eval()
    passes = MicroBatches("images", numerics.micro_batch)

    def passed(images: torch.Tensor) -> np.ndarray:
        inputs = see(images.to(device))
        with autocast(numerics):
            values = network.features(inputs) if features else network(inputs)
        return as_array(values.float())

    with torch.inference_mode(), deterministic(numerics), uncompiled(network):
        for ids, images in in_order(data, images_of(PIXELS, data)):
            batch = as_tensor(images)
            out[ids] = passes.joined(len(ids), lambda part, batch=batch: passed(batch[part]))  # type: ignore[misc]
    network.train(training)
    return out

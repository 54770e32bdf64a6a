"""Projected gradient ascent in pixel space: the inner loop of adversarial training, and robust accuracy.

Shape letters: B batch, C channels, H height, W width, K classes. Pixels are float32 in [0, 1], black is 0.
Source: Madry et al. (2018), section 2.1. Only the sign of the gradient counts, and normalising keeps it; so
gradients are taken with respect to the normalised image, and the normalisation is not part of the graph.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from bdtune.plugins.network import uncompiled
from bdtune.training.augment import Augmentation, normalise_planes
from bdtune.training.batches import images_of, in_order
from bdtune.training.choices import settled_name
from bdtune.training.micro_batches import MicroBatches
from bdtune.training.session import autocast, deterministic, device_of, dtype_of, full_float32, generator
from bdtune.training.weights import as_array, as_tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.network import Network
    from bdtune.training.adversarial import PGD
    from bdtune.training.choices import Augment

BATCH_PIXELS = 256 * 32 * 32  # of a batch that is attacked; half a prediction's, as a graph is kept


def pixel_augmentation(kind: Augment, data: ImageSet) -> Augmentation:
    """Return an augmentation that ends in pixels: float32 [B, C, H, W] in [0, 1], channels last."""
    channels = data.image_shape[2]
    settled: Any = settled_name(kind, mirrors=data.mirrors)
    return Augmentation(settled, (0.0,) * channels, (1.0,) * channels)


class Ascent:
    """An attack on one network, which may be in training: weights and mode are as they were afterwards.

    `numerics` gives the precision of the passes; positions and projection are float32 always.
    """

    def __init__(
        self,
        network: Network,
        knobs: PGD,
        data: ImageSet,
        numerics: Numerics,
        bn: Literal["eval", "train"] = "eval",
    ) -> None:
        self._network = network
        self._knobs = knobs
        self._mean, self._std = tuple(data.mean), tuple(data.std)
        self._numerics = numerics
        self._dtype = dtype_of(numerics)
        self._bn = bn
        self._passes = MicroBatches("images under attack", numerics.micro_batch)

    def normalise(self, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the network's input for float pixels [B, C, H, W], channels last."""
        return normalise_planes(pixels, self._mean, self._std, dtype)

    def __call__(
        self, pixels: torch.Tensor, labels: torch.Tensor, draws: torch.Generator | None = None
    ) -> torch.Tensor:
        """Return float32 [B, C, H, W], images of the ball around `pixels` with a high loss for `labels`.

        `draws`, a CPU generator, gives the random start; it may be missing where there is none.
        """
        eps, step = self._knobs.eps, self._knobs.step
        low, high = (pixels - eps).clamp_(min=0.0), (pixels + eps).clamp_(max=1.0)
        found = pixels.clone()
        if self._knobs.random_start:
            assert draws is not None
            # made on the CPU, hence equal for all devices
            start = torch.rand(pixels.shape, generator=draws).to(pixels.device, non_blocking=True)
            _project(found.add_(start, alpha=2 * eps).sub_(eps), low, high)
        with _attacked(self._network, self._bn):
            for _ in range(self._knobs.steps):
                _project(found.add_(self._gradient(found, labels).sign_(), alpha=step), low, high)
        return found

    def _gradient(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the gradient [B, C, H, W] of each image's own loss, up to positive factors by channel."""
        if self._bn == "train":  # whose statistics are those of the whole batch
            return self._of_part(pixels, labels)
        found = self._passes.attempt(
            len(pixels), lambda parts: [self._of_part(pixels[part], labels[part]) for part in parts]
        )
        return found[0] if len(found) == 1 else torch.cat(found)

    def _of_part(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen = self.normalise(pixels, self._dtype).requires_grad_()
        with autocast(self._numerics):
            logits = self._network(seen)
        # a sum: a mean would only shrink gradients that may be tiny already
        loss = cross_entropy(logits.float(), labels, reduction="sum")
        return torch.autograd.grad(loss, seen)[0]


def _project(pixels: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
    torch.clamp(pixels, low, high, out=pixels)


@contextmanager
def _attacked(network: Network, bn: Literal["eval", "train"]) -> Iterator[None]:
    """Keep weights out of the graph, and batch norm and dropout in the mode asked for."""
    training = network.training
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    network.train(bn == "train")
    for weight in weights:
        weight.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)
        network.train(training)


def attacked_batches(
    network: Network, data: ImageSet, knobs: PGD, seed: int, numerics: Numerics
) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield (ids int64 [B], pixels, attacked pixels) of all images, without augmentation, in id order.

    The attack runs in float32, whatever `numerics` says: in bf16 it finds weaker images, which would make
    a network look more robust than it is.
    """
    numerics = numerics.exact()
    device, plain = device_of(numerics), pixel_augmentation("none", data)
    attack = Ascent(network, knobs, data, numerics)
    labels = as_tensor(np.asarray(data.labels, np.int64))
    draws = generator(seed, "start")
    for ids, images in in_order(data, images_of(BATCH_PIXELS, data)):
        pixels = plain(as_tensor(images).to(device))
        with deterministic(numerics), uncompiled(network):
            found = attack(pixels, labels[as_tensor(ids)].to(device), draws)
        yield ids, pixels, found


@full_float32()
def pixel_logits(network: Network, data: ImageSet, pixels: torch.Tensor) -> torch.Tensor:
    """Return float32 logits [B, K] of pixels [B, C, H, W], in float32 throughout; the mode is as it is."""
    seen = normalise_planes(pixels, tuple(data.mean), tuple(data.std), torch.float32)
    passes = MicroBatches("images")
    with torch.inference_mode(), uncompiled(network):
        found = passes.attempt(len(seen), lambda parts: [network(seen[part]) for part in parts])
    return found[0] if len(found) == 1 else torch.cat(found)


def robust_predictions(
    network: Network, data: ImageSet, knobs: PGD, seed: int, numerics: Numerics
) -> np.ndarray:
    """Return int64 [N], the classes of the attacked images; the network is used in evaluation mode."""
    predicted = np.zeros(len(data), np.int64)
    training = network.training
    network.eval()
    for ids, _, found in attacked_batches(network, data, knobs, seed, numerics):
        predicted[ids] = as_array(pixel_logits(network, data, found).argmax(1))
    network.train(training)
    return predicted

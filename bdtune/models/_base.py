"""The contract of networks: a named description that builds a feature extractor with one linear layer on top.

Describing a network imports no torch; building one does.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from bdtune.registry import Plugin

if TYPE_CHECKING:
    from bdtune.models._network import Network

Stem = Literal["auto", "cifar", "imagenet"]
"""First layers: "cifar" keeps the resolution (3x3, stride 1, no pooling), "imagenet" divides it by four."""

LARGEST_SMALL_IMAGE = 64
"""Side in pixels up to which "auto" means the CIFAR stem."""


class Model(Plugin):
    """A network by name, with its knobs."""

    @abstractmethod
    def build(self, num_classes: int, image_shape: tuple[int, int, int]) -> Network:
        """Return a freshly initialised network for images of shape (H, W, C).

        Weights come from torch's global generator: the caller seeds it.
        """


def small_images(stem: Stem, image_shape: tuple[int, int, int]) -> bool:
    """Return whether a network for these images gets the CIFAR stem."""
    if stem == "auto":
        return max(image_shape[:2]) <= LARGEST_SMALL_IMAGE
    return stem == "cifar"

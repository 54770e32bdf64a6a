"""The contract of networks: a named description that builds a feature extractor with one linear layer on top.

Describing a network imports no torch; building one does.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from bdtune.errors import Problem
from bdtune.knobs import Knobs
from bdtune.plugins.field import PluginField
from bdtune.plugins.registry import Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from bdtune.plugins.network import Network

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

    def check(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        """Return why the network cannot be built for images of shape (H, W, C); paths are relative to it."""
        return []


if TYPE_CHECKING:
    ModelKnob = Model
else:
    ModelKnob = Annotated[Any, PluginField("models", "resnet_s")]
    """A network as a knob of a defense: written as its name, or as a mapping with a name and its knobs."""


def networks_of(knobs: Knobs, prefix: str) -> Iterator[tuple[str, Model]]:
    """Yield the networks among the knobs and their inner knobs, each with its dotted path."""
    for name in type(knobs).model_fields:
        value, path = getattr(knobs, name), f"{prefix}.{name}"
        if isinstance(value, Model):
            yield path, value
        elif isinstance(value, Knobs):
            yield from networks_of(value, path)


def is_network(info: FieldInfo) -> bool:
    """Return whether a knob is a network."""
    return any(isinstance(mark, PluginField) and mark.kind == "models" for mark in info.metadata)


def too_small(image_shape: tuple[int, int, int], least: int) -> list[Problem]:
    """Return what a network says that needs images (H, W, C) of at least `least` pixels a side."""
    side = min(image_shape[:2])
    if side >= least:
        return []
    hint = "Give the data set an image_size, or take another network"
    return [Problem("", f"expected images of at least {least} pixels a side", f"{side} pixels", hint=hint)]


def small_images(stem: Stem, image_shape: tuple[int, int, int]) -> bool:
    """Return whether a network for these images gets the CIFAR stem."""
    if stem == "auto":
        return max(image_shape[:2]) <= LARGEST_SMALL_IMAGE
    return stem == "cifar"

"""Pixels as BackdoorBench stores them when an attack has worked on normalised images.

Its WaNet and its input-aware attack stamp what the network sees, undo the normalisation, and truncate.
Rounding on the way takes one level from some bytes. Its other attacks that bdtune has stamp bytes.

Source: the public code of BackdoorBench (Wu et al., 2022; its version of July 2025), whose behaviour was read
and rebuilt.
Departures: a data set that it does not have is normalised by bdtune's own mean and deviation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from bdtune.plugins.dataset import Dataset

Scale = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel, of pixels in [0, 1]."""

CIFAR10: Scale = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))
NONE: Scale = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SCALES: dict[str, Scale] = {
    "cifar10": CIFAR10,
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "gtsrb": NONE,
    "celeba": NONE,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation by which BackdoorBench normalises a data set."""
ITS_NAME = {"tiny_imagenet": "tiny", "imagenet30": "imagenet"}
"""Data sets that it knows by another name."""


def scale_of(dataset: Dataset) -> Scale:
    """Return the mean and deviation by which BackdoorBench normalises a data set."""
    name = dataset.plugin_name()
    return SCALES.get(ITS_NAME.get(name, name), (tuple(dataset.mean), tuple(dataset.std)))


def normalised(images: np.ndarray, scale: Scale) -> np.ndarray:
    """Return uint8 images [n, H, W, C] as torchvision's `ToTensor` and `Normalize` make them, float32."""
    mean, std = (np.array(values, np.float32) for values in scale)
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def normalised_planes(planes: torch.Tensor, scale: Scale) -> torch.Tensor:
    """Return pixels [B, C, H, W] in [0, 1] as torchvision's `Normalize` makes them."""
    mean, std = (planes.new_tensor(values)[:, None, None] for values in scale)
    return (planes - mean) / std


def stored_bytes(images: np.ndarray, scale: Scale) -> np.ndarray:
    """Return normalised float32 images [n, H, W, C] as the uint8 that are stored.

    Two further normalisations undo the first, by (0, 1 / std) and (-mean, 1); `ToPILImage` truncates.
    """
    mean, std = (np.array(values) for values in scale)
    pixels = images / (1 / std).astype(np.float32) - (-mean).astype(np.float32)
    return (np.clip(pixels, 0, 1) * np.float32(255)).astype(np.uint8)

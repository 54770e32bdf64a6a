from __future__ import annotations

import numpy as np
import pytest

import bdtune
from bdtune.engine.stage import Artefact
from bdtune.plugins.data import ImageSet
from tests.doubles import Memory

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.25, 0.3)


@pytest.fixture
def memory():
    return Memory


class Blocks:
    """An image stream over an array, in blocks of seven."""

    def __init__(self, images):
        self.images = images

    @property
    def shape(self):
        return self.images.shape

    def blocks(self, shuffle_seed):
        ids = np.arange(len(self.images))
        if shuffle_seed is not None:
            ids = np.random.default_rng(shuffle_seed).permutation(ids)
        for start in range(0, len(ids), 7):
            yield ids[start : start + 7], self.images[ids[start : start + 7]]


@pytest.fixture
def stream():
    return Blocks


@pytest.fixture(scope="session")
def make_set():
    """Images whose class is the third that is bright: learnable in a few steps."""

    def make(count=96, side=16, classes=3, seed=0):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, count)
        images = rng.integers(0, 80, (count, side, side, 3)).astype(np.uint8)
        for row, label in enumerate(labels):
            part = side // classes
            images[row, label * part : (label + 1) * part] += 150
        return ImageSet(images, labels, classes, MEAN, STD)

    return make


@pytest.fixture(scope="session")
def everything():
    def subset(data, ids=None):
        ids = np.arange(len(data)) if ids is None else np.asarray(ids, np.int64)
        return Artefact({"ids": ids, "labels": data.labels[ids]})

    return subset


@pytest.fixture(scope="session")
def tiny():
    return bdtune.model("resnet_s", stem_width=4)

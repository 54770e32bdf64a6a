"""Attacks that train something first, made ready in a moment: tiny networks, an epoch or two, one store."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from bdtune.engine.execute import Executor
from bdtune.engine.numerics import Numerics
from bdtune.engine.store import Store
from bdtune.knobs import Knobs
from bdtune.plugins.attack import Attack
from bdtune.plugins.dataset import Dataset, Records
from bdtune.poisoning.sources import trained_nodes
from bdtune.reading.resident import InProcess
from bdtune.training.adversarial import PGD

NUMERICS = Numerics(device="cpu", precision="fp32")
MODEL = {"name": "resnet_s", "stem_width": 2}
CLASSIFIER = {
    "surrogate": {"epochs": 4, "batch_size": 16, "optimizer": "adam", "lr": 0.01, "augment": "none"},
    "surrogate_model": {"name": "resnet18", "width": 4},
}
"""Knobs of a surrogate that learns `quarters` in a moment."""
QUICK = {"epochs": 1, "iterations": 2, "batch_size": 16, "widths": (4, 4, 4), "channels": 4}
"""What knobs of these names become, wherever they stand."""

_sets = {}


class Shown(Dataset):
    """Images that a test holds; both splits have the same."""

    which: str
    classes: int = 4

    mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, ...]] = (0.3, 0.3, 0.3)

    @property
    def num_classes(self):
        return self.classes

    def records(self, split, root):
        images, labels = _sets[self.which]
        return Records(np.asarray(labels, np.int64), arrays=images)


def shown(images, labels, classes=4):
    """Return a data set of these images."""
    name = f"{hash((images.tobytes(), images.shape, np.asarray(labels).tobytes())):x}"
    _sets[name] = (images, labels)
    return Shown(which=name, classes=classes)


def quarters(n=96, side=16, noise=90, brighter=120):
    """Return images uint8 [n, side, side, 3] of four classes that take turns: which quarter is brighter."""
    images = np.random.default_rng(0).integers(0, noise, (n, side, side, 3), dtype=np.uint8)
    width = side // 4
    for row in range(n):
        images[row, :, width * (row % 4) : width * (row % 4 + 1)] += brighter
    return images


def is_trained(cls):
    return cls.artefacts is not Attack.artefacts


def quick(cls):
    """Return knobs of an attack or a stage that make its training short, nested as the knobs are."""
    found = {}
    for name, field in cls.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if name.endswith("model"):
            found[name] = MODEL
        elif name in QUICK:
            found[name] = QUICK[name]
        elif isinstance(default, PGD):
            found[name] = {"steps": 2}
        elif isinstance(default, Knobs):
            found[name] = quick(type(default))
    return found


def merged(base, over):
    """Return nested mappings laid over one another."""
    both = dict(base)
    for name, value in over.items():
        both[name] = merged(base[name], value) if isinstance(base.get(name), dict) and value else value
    return both


def folder_until_exit(prefix):
    """Return a new folder that is removed when this process ends."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def store():
    """Return the one store of this process's tests."""
    return Store(folder_until_exit("bdtune-test-store-"))


@contextmanager
def one_thread():
    """Compute as tests do; fixtures of a module are made before the test's own setting holds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def nodes_of(attack, dataset, root=None):
    """Return the nodes of what an attack trains on a data set, by name, of both splits."""
    return trained_nodes(attack, dataset, root, 0, NUMERICS)


def equipped_for(attack, dataset, root=None):
    """Return the attack with what it trains on a data set."""
    executor, nodes = Executor(store(), InProcess(root)), nodes_of(attack, dataset, root)
    with one_thread():
        return attack.equip({name: executor.compute(node) for name, node in nodes.items()})


def upstream(attack, images, classes=4):
    """Return the nodes of what an attack trains on images (uint8 [N, H, W, C])."""
    return nodes_of(attack, shown(images, np.arange(len(images)) % classes, classes))


def equipped(attack, images, classes=4):
    """Return the attack with what it trains on images whose classes take turns."""
    return equipped_for(attack, shown(images, np.arange(len(images)) % classes, classes))

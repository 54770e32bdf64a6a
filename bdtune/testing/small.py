"""Plugins made small enough to be checked in a moment: tiny images, networks and trainings."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import PrivateAttr

from bdtune.engine.execute import Executor
from bdtune.engine.numerics import Numerics
from bdtune.engine.store import Store
from bdtune.knobs import Knobs
from bdtune.plugins.attack import Attack
from bdtune.plugins.dataset import Dataset, Records
from bdtune.plugins.handles import Handle
from bdtune.poisoning.triggered_sources import trained_nodes
from bdtune.reading.resident import InProcess
from bdtune.training.adversarial import PGD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node

NUMERICS = Numerics(device="cpu", precision="fp32")
MODEL = {"name": "resnet_s", "stem_width": 2}
QUICK = {"epochs": 1, "iterations": 2, "batch_size": 16, "widths": (4, 4, 4), "channels": 4}
"""What settings of these names become, wherever they stand."""

_sets: dict[str, tuple[np.ndarray, np.ndarray]] = {}


class Shown(Dataset):
    """Images that a check holds in memory; both splits have the same."""

    which: str
    classes: int = 4

    mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, ...]] = (0.3, 0.3, 0.3)

    @property
    def num_classes(self) -> int:
        return self.classes

    def records(self, split: str, root: Path) -> Records:
        images, labels = _sets[self.which]
        return Records(np.asarray(labels, np.int64), arrays=images)


def shown(images: np.ndarray, labels: np.ndarray, classes: int = 4) -> Shown:
    """Return a data set of these images, uint8 [N, H, W, 3], with these labels [N]."""
    name = f"{hash((images.tobytes(), images.shape, np.asarray(labels).tobytes())):x}"
    _sets[name] = (images, labels)
    return Shown(which=name, classes=classes)


class Held(Handle):
    """A source that is a value in memory, named by its role; a chain that looks into it is refused."""

    _value: Any = PrivateAttr(None)

    @property
    def gives(self) -> type:
        return type(self._value)

    def made_of(self) -> dict[str, Any]:
        return {"held": self.role}

    def load(self, resident: object, artefacts: object) -> Any:
        return self._value


def held(role: str, value: Any) -> Held:
    """Return a source that loads `value`; its role alone enters keys."""
    source = Held(role=role)
    source._value = value
    return source


def is_trained(cls: type[Attack]) -> bool:
    """Return whether an attack trains something before it can stamp an image."""
    return cls.artefacts is not Attack.artefacts


def quick(cls: type[Knobs]) -> dict[str, Any]:
    """Return settings of an attack or a stage that make its trainings short, nested as they are."""
    found: dict[str, Any] = {}
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


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings, the second laid over the first."""
    both = dict(base)
    for name, value in over.items():
        both[name] = merged(base[name], value) if isinstance(base.get(name), dict) and value else value
    return both


def folder_until_exit(prefix: str) -> Path:
    """Return a new folder that is removed when this process ends."""
    path = Path(tempfile.mkdtemp(prefix=prefix))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def store() -> Store:
    """Return the one store of this process's checks."""
    return Store(folder_until_exit("bdtune-test-store-"))


def nodes_of(attack: Attack, dataset: Dataset, root: Path | None = None) -> dict[str, Node]:
    """Return the nodes of what an attack trains on a data set, by name, of both splits."""
    return trained_nodes(attack, dataset, root, 0, NUMERICS)


def equipped_for(attack: Attack, dataset: Dataset, root: Path | None = None) -> Attack:
    """Return the attack with what it trains on a data set."""
    import torch

    executor, nodes = Executor(store(), InProcess(root)), nodes_of(attack, dataset, root)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several get in each other's way on batches this small
    try:
        return attack.equip({name: executor.compute(node) for name, node in nodes.items()})
    finally:
        torch.set_num_threads(threads)


def equipped(attack: Attack, images: np.ndarray, classes: int = 4) -> Attack:
    """Return the attack with what it trains on images whose classes take turns."""
    return equipped_for(attack, shown(images, np.arange(len(images)) % classes, classes))

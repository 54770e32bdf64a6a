"""What tests of defenses on small made-up sets share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import bdtune
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.plugins.data import ImageSet, LabelSet, Truth
from bdtune.plugins.defense import DefenseInputs
from tests.doubles import CPU, Is, Memory, Nowhere

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.engine.execute import Event


class Counting(Executor):
    """Computes in process and notes the stages that it had to compute."""

    def __init__(self, root: Path) -> None:
        super().__init__(Store(root), Nowhere())  # type: ignore[arg-type]
        self.computed: list[str] = []

    def note(self, event: Event) -> None:
        if event.what == "computed":
            self.computed.append(event.node.name)


@pytest.fixture
def counting(tmp_path: Path) -> Counting:
    return Counting(tmp_path)


@pytest.fixture
def poisoned() -> tuple[DefenseInputs, Truth]:
    """Sixty noisy images of three classes, a fifth with a white corner and label 0."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1, 2], 20)
    images = rng.integers(0, 80, (60, 8, 8, 3)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, 2 * label + 2] += 100
    role = np.zeros(60, np.uint8)
    role[np.flatnonzero(labels)[:12]] = 1
    images[role == 1, :2, :2] = 255
    observed = np.where(role == 1, 0, labels)
    given = DefenseInputs(
        Is(word="fit", value=ImageSet(images, observed, 3, (0.3,) * 3, (0.25,) * 3)),
        Is(word="labels", value=LabelSet(observed, 3)),
        Is(word="model", value=bdtune.model("resnet_s", stem_width=4)),
        seed=3,
        numerics=CPU,
    )
    return given, Truth(labels, observed, role, 0)


@pytest.fixture
def memory() -> type[Memory]:
    return Memory

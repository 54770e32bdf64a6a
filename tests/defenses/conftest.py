"""What tests of defenses on small made-up sets share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bdtune
from bdtune.defenses._base import Given
from bdtune.engine.execute import Executor
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Source
from bdtune.engine.store import Store
from bdtune.training.data import ImageSet, LabelSet, Truth

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.engine.execute import Event

CPU = Numerics(device="cpu", precision="fp32")


class Is(Source):
    """A source that is the value it was made of, named by a word."""

    word: str
    value: Any

    def identity(self) -> dict[str, Any]:
        return {"test": self.word}

    def load(self, resident: object, artefacts: object) -> Any:
        return self.value


class Nowhere:
    """A resident that nothing asks."""

    def split(self, dataset: object, split: object) -> None:
        raise AssertionError

    labels = split


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
def poisoned() -> tuple[Given, Truth]:
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
    given = Given(
        Is(word="fit", value=ImageSet(images, observed, 3, (0.3,) * 3, (0.25,) * 3)),
        Is(word="labels", value=LabelSet(observed, 3)),
        Is(word="model", value=bdtune.model("resnet_s", stem_width=4)),
        seed=3,
        numerics=CPU,
    )
    return given, Truth(labels, observed, role, 0)


class Memory:
    """A checkpoint slot in memory that saves after the epochs it is told."""

    def __init__(self, due_after: tuple[int, ...] = ()) -> None:
        self.due_after, self.asked, self.state = set(due_after), 0, None

    def due(self) -> bool:
        self.asked += 1
        return self.asked in self.due_after

    def save(self, arrays: Any, info: Any) -> None:
        self.state = ({name: array.copy() for name, array in arrays.items()}, dict(info))

    def load(self) -> Any:
        return self.state


@pytest.fixture
def memory() -> type[Memory]:
    return Memory

"""What tests hand to a stage or a chain in place of a data set, an executor's folder or a checkpoint."""

from __future__ import annotations

from typing import Any

from bdtune.engine.input_source import Source
from bdtune.engine.numerics import Numerics

CPU = Numerics(device="cpu", precision="fp32")


class Is(Source):
    """A source that is the value it was made of, named by a word."""

    word: str
    value: Any

    def made_of(self) -> dict[str, Any]:
        return {"test": self.word}

    def load(self, resident: object, artefacts: object) -> Any:
        return self.value


class Nowhere:
    """A resident that nothing asks."""

    def split(self, dataset: object, split: object) -> None:
        raise AssertionError

    labels = split


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

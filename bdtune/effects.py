"""What a knob can change: markers in its annotation, which decide alone what enters a key.

A knob without a marker can change everything; one with several enters where all of them let it.
`Knobs.identity()` is about the whole result, `Knobs.identity(view)` about a part of it:
- train: a data set's training images, as an attack poisons them;
- test: a data set's test images, as an attack stamps them;
- cover: test images that are stamped as the cover rows of training are.
A view of any other name has the knobs without a marker, and those that name it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pydantic import BaseModel


class Effect:
    """Base of the markers."""

    def enters(self, owner: object, view: str | None) -> bool:
        """Return whether the knob of `owner` is part of a view, or (None) of the whole."""
        return True

    def seen(self, value: Any, knob: str) -> Any:
        """Return what of the knob's value enters."""
        return value


@dataclass(frozen=True, init=False)
class Only(Effect):
    """The knob enters the whole and these views; without any it enters nothing."""

    views: tuple[str, ...]

    def __init__(self, *views: str) -> None:
        object.__setattr__(self, "views", views)

    def enters(self, owner: object, view: str | None) -> bool:
        return bool(self.views) if view is None else view in self.views


NoEffect = Only()
"""The knob changes no result: a number of workers, a check, a place on this machine."""
TrainOnly = Only("train")
"""The knob changes no test image."""
TestOnly = Only("test", "cover")
"""The knob changes no training image: trials that differ in it alone share their training."""
ModelOnly = Only("model")
"""The knob changes what is trained on the images, no image."""


@dataclass(frozen=True, init=False)
class OnlyIf(Effect):
    """The knob enters if attributes of its owner (knobs, properties) have these values.

    `OnlyIf(optimizer="sgd")`; a tuple names several: `OnlyIf(optimizer=("adam", "adamw"))`.
    """

    conditions: tuple[tuple[str, tuple[Any, ...]], ...]

    def __init__(self, **conditions: Any) -> None:
        each = tuple((name, v if isinstance(v, tuple) else (v,)) for name, v in conditions.items())
        object.__setattr__(self, "conditions", each)

    def enters(self, owner: object, view: str | None) -> bool:
        return all(getattr(owner, name) in values for name, values in self.conditions)


@dataclass(frozen=True)
class Whether(Effect):
    """Of a number nothing enters but whether it is above a bound."""

    above: int

    def seen(self, value: Any, knob: str) -> Any:
        return value > self.above


@dataclass(frozen=True)
class ByContent(Effect):
    """The knob names a user's file or folder, of which the content enters, wherever it lies."""

    digest: Callable[[Path, str], str]
    """Makes the digest of a path; the knob's name is for its errors."""

    def seen(self, value: Any, knob: str) -> Any:
        return None if value is None else self.digest(value, knob)


@cache
def effects_of(cls: type[BaseModel]) -> dict[str, tuple[Effect, ...]]:
    """Return the markers of each knob of a class, inherited knobs included."""
    return {
        name: tuple(mark for mark in info.metadata if isinstance(mark, Effect))
        for name, info in cls.model_fields.items()
    }


@cache
def no_effect(cls: type[BaseModel]) -> frozenset[str]:
    """Return the knobs of a class that change no result."""
    return frozenset(name for name, marks in effects_of(cls).items() if NoEffect in marks)

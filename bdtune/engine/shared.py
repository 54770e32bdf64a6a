"""What is made once for many: results of the very same objects, and one object for equal knobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic_core import PydanticSerializationError

from bdtune.knobs import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
F = TypeVar("F", bound=Frozen)


class Shared(Generic[T]):
    """A function whose results are kept by the objects that it was called with.

    Only identical objects share a result: to compare two sets of knobs takes longer than most results do, and
    equal ones (1, 1.0 and true) may be different settings. The objects are kept too, so that no later one has
    the identity of an earlier one.
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._known: dict[tuple[int, ...], tuple[tuple[object, ...], T]] = {}

    def __call__(self, *parts: object) -> T:
        """Return what the function returns for these objects."""
        key = tuple(map(id, parts))
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = parts, self._make(*parts)
        return known[1]


class Alike:
    """One object for all knobs that are alike: equal, and of one JSON, in which 1, 1.0 and true differ."""

    def __init__(self) -> None:
        self._known: dict[tuple[type, object], Frozen] = {}

    def one(self, knobs: F) -> F:
        """Return the first of the knobs that are like these: these themselves, if there were none."""
        found = self._known.setdefault(_json(knobs), knobs)
        return found if isinstance(found, type(knobs)) and found == knobs else knobs


def _json(knobs: Frozen) -> tuple[type, object]:
    """Return the class and the JSON of knobs; the identity of those that have none."""
    try:
        return type(knobs), knobs.model_dump_json(warnings=False)
    except PydanticSerializationError:
        return type(knobs), id(knobs)

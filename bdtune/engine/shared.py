"""What is made once for many: results of the very same objects, and one object for equal knobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic_core import PydanticSerializationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.knobs import Knobs

T = TypeVar("T")


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
    """Values by the knobs that they are made of: knobs are alike if they are equal and have the same JSON.

    1, 1.0 and true are equal, but different settings.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[Knobs, Any]] = {}

    def get(self, knobs: Knobs, *around: object) -> Any:
        """Return the value that was kept for such knobs and the same hashable `around`; None without one."""
        known = self._known.get((*_json(knobs), *around))
        return known[1] if known is not None and known[0] == knobs else None

    def keep(self, value: T, knobs: Knobs, *around: object) -> T:
        """Keep a value for such knobs; return it."""
        self._known[(*_json(knobs), *around)] = knobs, value
        return value


def _json(knobs: Knobs) -> tuple[type, object]:
    """Return the class and the JSON of knobs; the identity of those that have none."""
    try:
        return type(knobs), knobs.model_dump_json(warnings=False)
    except PydanticSerializationError:
        return type(knobs), id(knobs)

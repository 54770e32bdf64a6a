"""What can be reached from a value by its fields, attributes, slots and items: what a stage could read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAVES = (str, bytes, int, float, type, type(None))


def reachable(start: Any) -> Iterator[Any]:
    """Yield a value and all that lies in it, each object once."""
    seen: dict[int, Any] = {}
    todo = [start]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value
        todo.extend(_inside(value))


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, _LEAVES):
        return
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, np.ndarray):
        yield value.base
    elif callable(value):
        yield getattr(value, "__self__", None)
        yield from (cell.cell_contents for cell in getattr(value, "__closure__", None) or ())
    else:
        yield from getattr(value, "__dict__", {}).values()
        yield from (getattr(value, "__pydantic_private__", None) or {}).values()
        yield from (getattr(value, name, None) for name in _attributes(type(value)))


def _attributes(cls: type) -> Iterator[str]:
    """Yield the names of slots, properties and methods that a class defines in this project."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] in ("bdtune", "tests", "bdtune_plugins"):
            yield from (name for name in vars(base) if not name.startswith("__"))
            slots = vars(base).get("__slots__", ())
            yield from (slots,) if isinstance(slots, str) else slots

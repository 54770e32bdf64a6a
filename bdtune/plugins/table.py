"""Tables of what is chosen by name and needs no file each: metrics, samplers, schedulers."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bdtune.errors import ConfigError, Problem, nearest
from bdtune.plugins import registry
from bdtune.source import file_digest

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True)
class Named:
    """An entry of a table: what is chosen by its name, and described in a sentence."""

    name: str
    about: str
    _: KW_ONLY
    source: str = ""
    """The paper it is from."""
    version: int = 1
    """Raise it whenever the entry gives another result."""
    code_digest: str | None = field(default=None, compare=False)
    """Of an entry outside the package: a digest of its file's source, set by the table that reads it."""

    def identity(self) -> dict[str, Any]:
        """Return what the entry adds to a key."""
        code = {} if self.code_digest is None else {"code_digest": self.code_digest}
        return {"name": self.name, "version": self.version, **code}


E = TypeVar("E", bound=Named)


class Table(Generic[E]):
    """The entries of a kind: the package's own, and one of each file BDTUNE_PLUGINS/<kind>/NAME.py."""

    def __init__(self, kind: str, entries: Iterable[E]) -> None:
        self.kind = kind
        self.own = {entry.name: entry for entry in entries}

    @property
    def outside(self) -> list[str]:
        """The names of the entries outside the package."""
        return registry.names(self.kind)

    @property
    def names(self) -> list[str]:
        """All names, the package's own first."""
        return [*self.own, *self.outside]

    def get(self, name: str) -> E | None:
        """Return the entry called `name`, in whatever case, None if there is none."""
        name = self._spelled(name)
        return self.find(name) if name in self.own or name in registry.places(self.kind) else None

    def find(self, name: str) -> E:
        """Return the entry called `name`; raises `ConfigError` with the nearest name if there is none."""
        name = self._spelled(name)
        if name in self.own:
            return self.own[name]
        places = registry.places(self.kind)
        if name not in places:
            expected = f"expected one of the {self.kind}: {', '.join(self.names)}"
            raise ConfigError(Problem("", expected, f"'{name}'", hint=nearest(name, self.names)))
        return self._read(places[name])

    def _spelled(self, name: str) -> str:
        return name.casefold() if name.casefold() in self.own else registry.canonical(self.kind, name)

    def check(self, name: str) -> str:
        """Return a name of an entry, as pydantic's validators do: raises `ValueError` with the problem."""
        try:
            return self.find(name).name
        except ConfigError as error:
            raise ValueError(error.problems[0]) from None

    @cache  # noqa: B019 - tables live as long as the process
    def _read(self, place: registry.Place) -> E:
        what, name = type(next(iter(self.own.values()))), place.module.rpartition(".")[2]
        module = registry.imported(place)
        found = [value for value in vars(module).values() if isinstance(value, what)]
        if [entry.name for entry in found] != [name]:
            expected = f"expected {place.file} to define one {what.__name__}, called '{name}'"
            raise ConfigError(Problem("", expected, ", ".join(f"'{each.name}'" for each in found) or "none"))
        return replace(found[0], code_digest=file_digest(place.file, module.__name__))

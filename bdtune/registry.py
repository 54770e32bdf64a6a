"""The folder is the registry: a plugin's file name is its name, and adding one edits no other file.

Besides the package's own folders, every folder in `BDTUNE_PLUGINS` (separated as in `PATH`) is searched
for `attacks/`, `defenses/`, `datasets/` and `models/`, so that a plugin need not live in the package; and for
`metrics/`, `samplers/` and `schedulers/`, which extend the package's tables of these.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from bdtune.errors import ConfigError, Problem, nearest
from bdtune.knobs import Knobs
from bdtune.source import code_identity, file_digest, source_digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

KINDS = ("attacks", "defenses", "datasets", "models")
TABLES = ("metrics", "samplers", "schedulers")
"""Kinds of which the package has a table, whose entries need no file each."""


class Plugin(Knobs):
    """Base of attacks, defenses, data sets and models."""

    version: ClassVar[int] = 1
    """Raise it whenever the same knobs give another result: old artefacts are then left alone."""
    code_digest: ClassVar[str | None] = None
    """Of a plugin outside the package: a digest of its source, which enters keys as its version does."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.code_digest = source_digest(cls, Knobs)

    @classmethod
    def plugin_name(cls) -> str:
        """Return the name under which users know the plugin: the name of its file."""
        return cls.__module__.rpartition(".")[2]

    def identity(self) -> dict[str, Any]:
        code = code_identity(type(self), self.code_digest)
        return {"name": self.plugin_name(), "version": self.version, **super().identity(), **code}


@dataclass(frozen=True)
class Description:
    """What `bdtune list` shows, read from the file's docstring without importing it."""

    name: str
    summary: str
    source: str


@dataclass(frozen=True)
class NotOffered:
    """A published method that is known by name, but not built: an error that says so, and helps."""

    what: str
    """The method and its paper."""
    why: str
    """What is missing, as a clause."""
    instead: str
    """What to do, as a sentence without its full stop."""
    presets: tuple[str, ...] = ()
    """Names that a preset of it would have."""

    def problem(self, path: str, name: str) -> Problem:
        """Return what is wrong with asking for it by a name."""
        expected = f"expected what bdtune can make; {self.what} is known, but not offered: {self.why}"
        return Problem(path, expected, got=repr(name), hint=self.instead)


def not_offered(kind: str) -> dict[str, NotOffered]:
    """Return the methods of a kind that are known but not built, by the names they would have."""
    if not (Path(__file__).parent / kind / "_not_offered.py").exists():
        return {}
    return dict(importlib.import_module(f"bdtune.{kind}._not_offered").NOT_OFFERED)


def _folders(kind: str) -> list[Path]:
    own = Path(__file__).parent / kind
    extra = [Path(root) / kind for root in os.environ.get("BDTUNE_PLUGINS", "").split(os.pathsep) if root]
    return [folder for folder in [own, *extra] if folder.is_dir()]


def _files(kind: str) -> dict[str, Path]:
    if kind not in (*KINDS, *TABLES):
        raise ValueError(f"kind must be one of {(*KINDS, *TABLES)}, got {kind!r}")
    folders = _folders(kind)
    return _listing(kind, tuple((folder, folder.stat().st_mtime_ns) for folder in folders))


@lru_cache(maxsize=32)
def _listing(kind: str, folders: tuple[tuple[Path, int], ...]) -> dict[str, Path]:
    """Return the plugin files of folders in a state that their time of change tells."""
    found: dict[str, Path] = {}
    for folder, _ in folders:
        for file in sorted(folder.glob("*.py")):
            if file.stem.startswith("_"):
                continue
            if file.stem in found:
                raise ConfigError(f"two {kind} are called '{file.stem}': {found[file.stem]} and {file}")
            found[file.stem] = file
    return found


def names(kind: str) -> list[str]:
    """Return the plugin names of a kind, sorted, without importing any."""
    return sorted(_files(kind))


def load(kind: str, name: str) -> type[Any]:
    """Return the plugin class called `name`.

    Raises `ConfigError` if there is none: with the nearest name, or with what stands against a known method.
    """
    files = _files(kind)
    if name not in files:
        if known := not_offered(kind).get(name):
            raise ConfigError(known.problem("", name))
        expected = f"expected one of the {kind}: {', '.join(sorted(files))}"
        raise ConfigError(Problem(path="", expected=expected, got=repr(name), hint=nearest(name, files)))
    return _plugin_class(kind, name, files[name])


@cache
def _plugin_class(kind: str, name: str, file: Path) -> type[Any]:
    module = _import(kind, name, file)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Plugin) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{file} must define exactly one plugin class, found {len(found)}")
    return found[0]


def _import(kind: str, name: str, file: Path) -> ModuleType:
    if file.parent == Path(__file__).parent / kind:
        return importlib.import_module(f"bdtune.{kind}.{name}")
    full_name = f"bdtune_plugins.{kind}.{name}"
    spec = importlib.util.spec_from_file_location(full_name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module  # pydantic looks annotations up there
    spec.loader.exec_module(module)
    return module


def describe(kind: str, name: str) -> Description:
    """Read the first sentence and the `Source:` paragraph of a plugin file's docstring."""
    text = ast.get_docstring(ast.parse(_files(kind)[name].read_text(encoding="utf-8"))) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    source = re.search(r"^Source:\s*(.+?)(?=\n\s*\n|\s+Departures?:|\Z)", text, re.MULTILINE | re.DOTALL)
    return Description(name, summary, " ".join(source[1].split()) if source else "")


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
        return names(self.kind)

    @property
    def names(self) -> list[str]:
        """All names, the package's own first."""
        return [*self.own, *self.outside]

    def get(self, name: str) -> E | None:
        """Return the entry called `name`, None if there is none."""
        return self.find(name) if name in self.own or name in _files(self.kind) else None

    def find(self, name: str) -> E:
        """Return the entry called `name`; raises `ConfigError` with the nearest name if there is none."""
        if name in self.own:
            return self.own[name]
        files = _files(self.kind)
        if name not in files:
            expected = f"expected one of the {self.kind}: {', '.join(self.names)}"
            raise ConfigError(Problem("", expected, f"'{name}'", hint=nearest(name, self.names)))
        return self._read(files[name])

    def check(self, name: str) -> str:
        """Return a name of an entry, as pydantic's validators do: raises `ValueError` with the problem."""
        try:
            return self.find(name).name
        except ConfigError as error:
            raise ValueError(error.problems[0]) from None

    @cache  # noqa: B019 - tables live as long as the process
    def _read(self, file: Path) -> E:
        what = type(next(iter(self.own.values())))
        module = _import(self.kind, file.stem, file)
        found = [value for value in vars(module).values() if isinstance(value, what)]
        if [entry.name for entry in found] != [file.stem]:
            expected = f"expected {file} to define one {what.__name__}, called '{file.stem}'"
            raise ConfigError(Problem("", expected, ", ".join(f"'{each.name}'" for each in found) or "none"))
        return replace(found[0], code_digest=file_digest(file, module.__name__))

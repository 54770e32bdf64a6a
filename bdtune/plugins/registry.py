"""The registry of plugins: one file or one folder per plugin, called like it; adding one edits no other file.

A plugin is `NAME.py`, or a folder `NAME/` whose `__init__.py` defines the plugin class. It lies in one of
- the package's own folders `attacks/`, `defenses/`, `datasets/`, `models/`;
- folders of these names below a folder that `BDTUNE_PLUGINS` lists (separated as in `PATH`), where
  `metrics/`, `samplers/` and `schedulers/` extend the package's tables of these;
- an installed package that registers the module as an entry point: `NAME = "package.module.NAME"` in the
  group `bdtune.attacks`, `bdtune.defenses` and so on.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import itertools
import os
import re
import sys
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from bdtune.errors import ConfigError, Problem, UserError, nearest
from bdtune.knobs import Knobs
from bdtune.source import code_identity, one_line, raised_at, source_digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint
    from types import ModuleType

    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.defense import Defense
    from bdtune.plugins.model import Model

KINDS = ("attacks", "defenses", "datasets", "models")
TABLES = ("metrics", "samplers", "schedulers")
"""Kinds of which the package has a table, whose entries need no file each."""
EVERY = (*KINDS, *TABLES)
PACKAGE_FOLDER = Path(__file__).parents[1]
OUTSIDE = "bdtune_plugins"
"""The package under whose name modules from `BDTUNE_PLUGINS` are imported."""


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
        """Return the name under which users know the plugin: the name of its file or folder."""
        return cls.__module__.rpartition(".")[2]

    def with_name(self, knobs: dict[str, Any]) -> dict[str, Any]:
        code = code_identity(type(self), self.code_digest)
        return {"name": self.plugin_name(), "version": self.version, **knobs, **code}


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
    if not (PACKAGE_FOLDER / kind / "_not_offered.py").exists():
        return {}
    return dict(importlib.import_module(f"bdtune.{kind}._not_offered").NOT_OFFERED)


@dataclass(frozen=True)
class Place:
    """Where a plugin is defined."""

    module: str
    file: Path
    installed: bool
    """Whether Python finds the module by its name."""
    problem: Problem | None = None
    """What keeps it from being loaded; others can be, all the same."""


def places(kind: str) -> Mapping[str, Place]:
    """Return where the plugins of a kind are defined, by name."""
    if kind not in EVERY:
        raise ValueError(f"kind must be one of {EVERY}, got {kind!r}")
    roots = [Path(root) for root in os.environ.get("BDTUNE_PLUGINS", "").split(os.pathsep) if root]
    folders = [folder for root in roots if (folder := root / kind).is_dir()]
    return _listing(kind, tuple((folder, folder.stat().st_mtime_ns) for folder in folders))


@lru_cache(maxsize=32)
def _listing(kind: str, folders: tuple[tuple[Path, int], ...]) -> dict[str, Place]:
    """Return the plugins of a kind by name; a folder's time of change says when to list it again."""
    found: dict[str, Place] = {}
    every = [_in_folder(PACKAGE_FOLDER / kind, f"bdtune.{kind}", installed=True), _entry_points(kind)]
    every += [_in_folder(folder, f"{OUTSIDE}.{kind}", installed=False) for folder, _ in folders]
    for name, place in itertools.chain.from_iterable(every):
        if name in found:
            both = f"{found[name].file} and {place.file}"
            problem = Problem("", f"expected one of the {kind} to be called '{name}'", f"two: {both}")
            found[name] = replace(found[name], problem=problem)
        else:
            found[name] = place
    return found


def _in_folder(folder: Path, package: str, *, installed: bool) -> list[tuple[str, Place]]:
    """Return the plugin files of a folder, and of its folders the `__init__.py`."""
    return [(name, Place(f"{package}.{name}", file, installed)) for name, file in plugin_files(folder)]


def plugin_files(folder: Path) -> list[tuple[str, Path]]:
    """Return the plugins of a folder such as `attacks/`: their names and files, sorted."""
    files = {file.stem: file for file in folder.glob("*.py")}
    files |= {file.parent.name: file for file in folder.glob("*/__init__.py")}
    return sorted((name, file) for name, file in files.items() if not name.startswith("_"))


@cache
def _entry_points(kind: str) -> list[tuple[str, Place]]:
    """Return the plugins that installed packages register."""
    return [(point.name, _registered(point)) for point in entry_points(group=f"bdtune.{kind}")]


def _registered(point: EntryPoint) -> Place:
    """Return where an entry point's plugin is defined, with a problem if it is no module of that name."""
    origin = _module_file(point.module)
    if origin is not None and not point.attr and point.module.rpartition(".")[2] == point.name:
        return Place(point.module, origin, installed=True)
    expected = f"expected entry point '{point.name}' of group '{point.group}' to be a module of that name"
    return Place(point.module, origin or Path(), installed=True, problem=Problem("", expected, point.value))


def _module_file(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def names(kind: str) -> list[str]:
    """Return the plugin names of a kind, sorted, without importing any."""
    return sorted(places(kind))


def canonical(kind: str, name: str) -> str:
    """Return a name as the plugin's file spells it where only the case differs; any other as it is."""
    known = places(kind)
    alike = [each for each in known if each.casefold() == name.casefold()]
    return alike[0] if name not in known and len(alike) == 1 else name


@overload
def load(kind: Literal["attacks"], name: str) -> type[Attack]: ...
@overload
def load(kind: Literal["defenses"], name: str) -> type[Defense]: ...
@overload
def load(kind: Literal["datasets"], name: str) -> type[Dataset]: ...
@overload
def load(kind: Literal["models"], name: str) -> type[Model]: ...
@overload
def load(kind: str, name: str) -> type[Plugin]: ...
def load(kind: str, name: str) -> type[Plugin]:
    """Return the plugin class called `name`.

    Raises `ConfigError` if there is none: with the nearest name, or with what stands against a known method.
    """
    known, name = places(kind), canonical(kind, name)
    if name not in known:
        if method := not_offered(kind).get(name):
            raise ConfigError(method.problem("", name))
        expected = f"expected one of the {kind}: {', '.join(sorted(known))}"
        raise ConfigError(Problem(path="", expected=expected, got=repr(name), hint=nearest(name, known)))
    if problem := known[name].problem:
        raise ConfigError(problem)
    return _plugin_class(kind, known[name])


@cache
def _plugin_class(kind: str, place: Place) -> type[Plugin]:
    module, base = imported(place), _base(kind)
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Plugin) and value.__module__ == module.__name__
    ]
    where = str(place.file)
    if len(found) != 1 or not issubclass(found[0], base):
        expected = f"expected one class based on {base.__name__} of {base.__module__}"
        got = ", ".join(f"{cls.__name__}({cls.__bases__[0].__name__})" for cls in found) or "none"
        raise ConfigError(Problem("", expected, got, where))
    if lacking := sorted(getattr(found[0], "__abstractmethods__", ())):
        expected = f"expected class {found[0].__name__} to define {' and '.join(lacking)}"
        hint = nearest(lacking[0], vars(found[0]).keys() - vars(base).keys())
        raise ConfigError(Problem("", expected, "a class without it", where, hint))
    return found[0]


def _base(kind: str) -> type[Plugin]:
    """Return the contract of a kind: `Attack` of `bdtune.plugins.attack` for "attacks"."""
    contract = importlib.import_module(f"bdtune.plugins.{kind.removesuffix('s')}")
    base: type[Plugin] = getattr(contract, kind.removesuffix("s").capitalize())
    return base


def imported(place: Place) -> ModuleType:
    """Import a plugin's file; raises `ConfigError` with the line that keeps it from being imported."""
    try:
        return importlib.import_module(place.module) if place.installed else _executed(place)
    except UserError as error:
        raise ConfigError(
            [replace(each, where=each.where or str(place.file)) for each in error.problems]
        ) from error
    except Exception as error:
        raise ConfigError(_broken(place, error)) from error


def _executed(place: Place) -> ModuleType:
    """Import a file that Python does not find by itself; a folder's other files are found as its modules."""
    inner = [str(place.file.parent)] if place.file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(place.module, place.file, submodule_search_locations=inner)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[place.module] = module  # pydantic looks annotations up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[place.module]
        raise
    return module


def _broken(place: Place, error: Exception) -> Problem:
    """Return what keeps a plugin's file from being imported, with the line of the plugin that it is in."""
    where = raised_at(error, place.file.parent) or str(place.file)
    return Problem("", "expected a file that can be imported", one_line(error), where)


def describe(kind: str, name: str) -> Description:
    """Read the first sentence and the `Source:` paragraph of a plugin file's docstring."""
    if problem := places(kind)[name].problem:
        return Description(name, str(problem), "")
    file = places(kind)[name].file
    try:
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"), str(file))) or ""
    except (SyntaxError, ValueError) as error:  # ValueError: the file is no text
        return Description(name, str(_broken(places(kind)[name], error)), "")
    summary = " ".join(text.partition("\n\n")[0].split())
    source = re.search(r"^Source:\s*(.+?)(?=\n\s*\n|\s+Departures?:|\Z)", text, re.MULTILINE | re.DOTALL)
    return Description(name, summary, " ".join(source[1].split()) if source else "")


def loadable(kind: str) -> dict[str, type[Plugin]]:
    """Return the plugins of a kind by name, but for those that cannot be loaded: they stop no other."""
    found = {}
    for name in names(kind):
        with contextlib.suppress(ConfigError):
            found[name] = load(kind, name)
    return found

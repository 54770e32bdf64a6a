"""Who owns a class and what its code is: keys hold both, so that no result of other or older code is used.

Inside the package an explicit `version` says when code changed. Plugins from elsewhere are edited while they
are tried out: their source is hashed. Of an error it says which line of such code raised it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bdtune.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = "bdtune"
UNKNOWN = "unknown"
DIGEST_LENGTH = 16
PLUGIN_ROOMS = ("attacks", "defenses", "datasets", "models")
"""Parts of the package in which each plugin owns its stages; elsewhere the part does."""


def is_own(module: str) -> bool:
    """Return whether a module, in dots, is part of the package."""
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


@cache
def owner_of(cls: type) -> str:
    """Return who owns a class: "training", "defenses.gssd", or the module of code outside the package."""
    if not is_own(cls.__module__):
        return cls.__module__
    room, _, rest = cls.__module__.removeprefix(f"{PACKAGE}.").partition(".")
    return f"{room}.{rest.partition('.')[0]}" if room in PLUGIN_ROOMS else room


def file_of(cls: type) -> Path | None:
    """Return the file that defines a class; None in a notebook, and of what a worker was sent by value."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return None if file is None else Path(file)


def source_digest(cls: type, base: type) -> str | None:
    """Return a digest of the source of a class outside the package; None for one inside.

    It covers the files of the class and of its ancestors below `base`, and all modules that these import from
    their own folder or package. Comments, docstrings and layout do not count. `UNKNOWN` of a class without a
    file: the copy that a worker is sent gets its original's digest afterwards.
    """
    outside = [each for each in cls.__mro__ if issubclass(each, base) and not is_own(each.__module__)]
    if not outside:
        return None
    files: set[Path] = set()
    for each in outside:
        if (file := file_of(each)) is None:
            return UNKNOWN
        files |= _with_imports(file, each.__module__)
    return _digest(files)


def file_digest(file: Path, module: str) -> str:
    """Return a digest of a file outside the package, and of what it imports from its folder or package."""
    return _digest(_with_imports(file, module))


def _digest(files: set[Path]) -> str:
    sha = hashlib.sha256()
    for code in sorted(_code(file) for file in files):
        sha.update(hashlib.sha256(code.encode()).digest())
    return sha.hexdigest()[:DIGEST_LENGTH]


def code_identity(cls: type, digest: str | None) -> dict[str, str]:
    """Return what a class's code adds to its identity; raises `ConfigError` if that is not known."""
    if digest == UNKNOWN:
        what = f"{cls.__module__}.{cls.__qualname__} is defined in no file"
        raise ConfigError(f"{what}, so a change of its code could not be noticed; move it into a plugin file")
    return {} if digest is None else {"code_digest": digest}


def _code(file: Path) -> str:
    """Return a file's code in one layout, without comments and docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = [statement for statement in node.body if not _is_text(statement)]
            node.body = body or [ast.Pass()]
    return ast.unparse(tree)


def _is_text(statement: ast.stmt) -> bool:
    match statement:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


def _with_imports(file: Path, module: str) -> set[Path]:
    """Return a file and all that it imports, directly or not, from its own folder or package."""
    package = module.partition(".")[0]
    inside = getattr(sys.modules.get(package), "__file__", None)
    # a package's folder, else the plugin folder that holds defenses/ and so on
    levels = max(2, module.count(".") + (file.name == "__init__.py"))
    root = Path(inside).parent if inside else file.parents[levels - 1]
    found: set[Path] = set()
    todo = [(file.resolve(), module)]
    while todo:
        each, name = todo.pop()
        if each not in found:
            found.add(each)
            todo += _imported(each, name, root.resolve())
    return found


def _imported(file: Path, module: str, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files below `root` that a file imports anywhere, with their modules' names."""
    for name in _imported_names(file, module):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            candidate = ".".join(parts[:length])
            origin = _origin(candidate, root)
            if origin is not None:
                yield origin, candidate
                break


def _imported_names(file: Path, module: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            home = ".".join([*above, *filter(None, [node.module])])
            names |= {f"{home}.{alias.name}".strip(".") for alias in node.names}
    return {name for name in names if not is_own(name)}


def _origin(name: str, root: Path) -> Path | None:
    """Return the file of a module if it lies below `root`; no package from elsewhere is imported for it."""
    top, parent = name.partition(".")[0], name.rpartition(".")[0]
    try:
        if parent not in sys.modules:
            found = importlib.util.find_spec(top)
            places = [] if found is None else [found.origin, *(found.submodule_search_locations or [])]
            if not any(place and Path(place).resolve().is_relative_to(root) for place in places):
                return None
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # not a module; a module without a spec
        return None
    origin = Path(found.origin).resolve() if found and found.origin else None
    return origin if origin and origin.suffix == ".py" and origin.is_relative_to(root) else None


def raised_at(error: BaseException, folder: Path) -> str:
    """Return the last `file:line` of a folder that an error came through, "" if it came through none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    return f"{inside[-1].filename}:{inside[-1].lineno}" if inside else ""


def one_line(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return ": ".join([type(error).__name__, *text.splitlines()[:1]])

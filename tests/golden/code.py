"""A digest of the code that a training computes with: its class, and what that refers to in turn.

Names are followed from definition to definition through the modules that compute. What cannot change a
result for the same key does not count: comments, docstrings, layout, types, knobs (a key holds their values),
texts of errors, and what is imported for type checkers.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

import bdtune

ROOT = Path(bdtune.__file__).parent
FOLLOWED = ("attacks", "defending", "defenses", "metrics", "poisoning", "training")
"""Where trainings compute. Networks, stamps and derived stages have goldens of their results."""

Symbol = tuple[str, str]
"""A module, as in "training.flows", and a name that it defines."""


class Module:
    """The top-level definitions of a file, and where its imported names come from."""

    def __init__(self, name: str, tree: ast.Module) -> None:
        self.name = name
        self.defined: dict[str, ast.stmt] = {}
        for statement in tree.body:
            for symbol in _names(statement):
                self.defined[symbol] = statement
        self.imported = dict(_imports(tree))

    def uses(self, symbol: str) -> list[Symbol]:
        """Return what a definition refers to."""
        found = []
        for node in ast.walk(self.defined[symbol]):
            match node:
                case ast.Attribute(value=ast.Name(id=root), attr=attribute) if root in self.imported:
                    module, name = self.imported[root]
                    found.append((f"{module}.{name}", attribute))  # of an imported module
                case ast.Name(id=name) if name in self.defined:
                    found.append((self.name, name))
            if isinstance(node, ast.Name) and node.id in self.imported:
                found.append(self.imported[node.id])
        return found


def _names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _imports(tree: ast.AST) -> list[tuple[str, Symbol]]:
    """Return the names imported from bdtune anywhere in a file but under TYPE_CHECKING."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "bdtune":
            module = (node.module or "").removeprefix("bdtune").removeprefix(".")
            found += [(alias.asname or alias.name, (module, alias.name)) for alias in node.names]
        found += _imports(node)
    return found


@cache
def module(name: str) -> Module | None:
    """Return a followed module of bdtune, None for any other."""
    if not any(name == each or name.startswith(f"{each}.") for each in FOLLOWED):
        return None
    path = ROOT / name.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return Module(name, ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else None


def closure(roots: list[Symbol]) -> list[Symbol]:
    """Return all definitions that some depend on, themselves included, sorted."""
    found: set[Symbol] = set()
    todo = list(roots)
    while todo:
        symbol = todo.pop()
        home = module(symbol[0])
        if symbol in found or home is None:
            continue
        if symbol[1] in home.defined:
            found.add(symbol)
            todo += home.uses(symbol[1])
        elif home.imported.get(symbol[1], symbol) != symbol:  # passed on from another module
            todo.append(home.imported[symbol[1]])
    return sorted(found)


def canonical(node: object) -> object:
    """Return syntax as plain values that are the same in every version of Python."""
    match node:
        case ast.Raise():
            return "raise"
        case ast.Assert(test=test):
            return ["assert", canonical(test)]
        case ast.AST():
            fields = {name: canonical(_read(node, name)) for name in node._fields if name not in UNREAD}
            return [
                type(node).__name__,
                {name: value for name, value in fields.items() if value not in (None, [])},
            ]
        case list():
            return [canonical(each) for each in node if not _is_text(each)]
    return node if isinstance(node, str | int | bool | type(None)) else repr(node)


UNREAD = {"annotation", "kind", "returns"}
"""Fields of syntax that change no result."""


def _is_text(node: object) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
    return False


def _read(node: ast.AST, name: str) -> object:
    """Return a field of syntax; of a class without decorators not its knobs."""
    value = getattr(node, name, None)
    if isinstance(node, ast.ClassDef) and name == "body" and not node.decorator_list:
        return [each for each in node.body if not _is_knob(each)]
    return value


def _is_knob(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation)


def code_digest(*roots: type) -> str:
    """Return twelve hex digits for the code of some classes of bdtune."""
    names = [(root.__module__.removeprefix("bdtune."), root.__qualname__) for root in roots]
    parts = []
    for home, symbol in closure(names):
        found = module(home)
        assert found is not None
        parts.append([home, symbol, canonical(found.defined[symbol])])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

"""Reading YAML: plain values only, numbers as people write them, and the line of every dotted path.

Differences from PyYAML's `safe_load`, which resolves scalars by YAML 1.1: `1e-3` is a number; `no`, `on`
and `12:30` are text; a key given twice is an error; a tag such as `!!python/object` is an error. As there,
`<<: *name` adds the entries of another mapping, and `<<: [*one, *two]` those of several: what a mapping has
itself stands, then what is named first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import yaml

from bdtune.errors import LONGEST_NAME, Problem

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 4_000_000
MAX_VALUES = 50_000
"""Values in one file after its aliases are written out: a real sweep has a few thousand at most."""
MAX_DEPTH = 40
MAX_CHARACTERS = 16_000_000
"""Of all values and their dotted paths, after aliases are written out."""
MAX_TEXT = 10_000
"""Characters of one value."""
LARGEST_INTEGER = 2**63 - 1

_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_INT = re.compile(r"[-+]?(?:[0-9][0-9_]*|0x[0-9a-fA-F]+|0o[0-7]+)\Z")
_FLOAT = re.compile(
    r"[-+]?(?:(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)
_TAG = "tag:yaml.org,2002:"
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
"""Characters that no file, path or JSON can hold; YAML writes them as "\\0" and "\\ud800"."""


class _TooMuch(Exception):  # noqa: N818 (ends the walk; never leaves this module)
    """The document is larger than any real one."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars and a bound; `compose` is all that is used of it."""

    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.nodes += 1
        if self.nodes > 2 * MAX_VALUES:  # a key is a node too
            raise _TooMuch(f"expected at most {MAX_VALUES:,} values")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)


for _name, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, None)


@dataclass
class YamlText:
    """What a YAML text holds: its value, the line of each dotted path, and what is wrong with it.

    A mapping's entries are `parent.key`, a list's `parent[0]`. Lines count from 1.
    """

    data: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_yaml(file: Path, shown_as: str | None = None) -> YamlText:
    """Read one file; everything that is wrong with it is in `problems`, with `shown_as` as its name."""
    name = shown_as or str(file)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            return _failed(name, f"expected a file of at most {MAX_BYTES:,} bytes", f"{size:,}")
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return _failed(name, "expected text in UTF-8")
    except OSError as error:
        return _failed(name, "expected a file that can be read", error.strerror or type(error).__name__)
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> YamlText:
    """Read YAML from a text; `name` stands for the file in problems."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        wrong = ", ".join(part for part in (error.context, error.problem) if part)
        return _failed(f"{name}:{line}", "expected valid YAML", " ".join(wrong.split()))
    except yaml.reader.ReaderError as error:
        character = error.character if isinstance(error.character, str) else chr(error.character)
        line = text.count("\n", 0, error.position) + 1
        return _failed(f"{name}:{line}", "expected printable text", f"the character {character!r}")
    except _TooMuch as error:
        return _failed(name, str(error), "more")
    except RecursionError:
        return _failed(name, f"expected at most {MAX_DEPTH} levels of nesting", "more")
    result = YamlText()
    if node is not None:
        _Builder(name, result).start(node)
    return result


def parse_value(text: str) -> list[Any]:
    """Read `a, b, c` as YAML values: one per comma that lies outside brackets and quotes.

    Raises `ValueError` with a short reason when the text is no YAML.
    """
    result = parse_yaml(f"[{text}]", "")
    if result.problems:
        raise ValueError(result.problems[0].got or result.problems[0].expected)
    if not isinstance(result.data, list):  # "[1], [2" + "]" and the like
        raise ValueError("unbalanced brackets")
    return result.data


def _failed(where: str, expected: str, got: str = "") -> YamlText:
    return YamlText(problems=[Problem(path="", expected=expected, got=got, where=where)])


_Pair = tuple[yaml.Node, yaml.Node]
"""An entry of a mapping: its key and its value."""
_BAD = object()
"""Stands for a value that was reported, so that nothing else is said about it."""


class _Builder:
    """Turns composed nodes into plain values and notes their lines."""

    def __init__(self, name: str, result: YamlText) -> None:
        self.name, self.result, self.count, self.characters = name, result, 0, 0

    def start(self, node: yaml.Node) -> None:
        try:
            value = self.value(node, "", 0)
            self.result.data = None if value is _BAD else value
        except _TooMuch as error:
            # A chain of aliases, or an alias of itself, writes out a huge document from a few lines.
            self.problem(node, "", str(error), "more (do its aliases repeat each other?)")

    def problem(self, node: yaml.Node, path: str, expected: str, got: str = "") -> None:
        where = f"{self.name}:{node.start_mark.line + 1}"
        self.result.problems.append(Problem(path, expected, got, where))

    def value(self, node: yaml.Node, path: str, depth: int) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _TooMuch(f"expected at most {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise _TooMuch(f"expected at most {MAX_DEPTH} levels of nesting")
        self.characters += len(path) + (len(node.value) if isinstance(node, yaml.ScalarNode) else 0)
        if self.characters > MAX_CHARACTERS:
            raise _TooMuch(f"expected at most {MAX_CHARACTERS:,} characters")
        self.result.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            items = [self.value(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
            return [item for item in items if item is not _BAD]
        return self.scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in [*self.merged(node, path, depth), *_own(node)]:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            if not key:
                self.problem(key_node, path, "expected a name before ':'")
                continue
            if len(key) > LONGEST_NAME or _NO_TEXT.search(key):
                expected = f"expected a printable name of at most {LONGEST_NAME} characters"
                self.problem(key_node, path, expected, repr(key[:20] + "..."))
                continue
            inner = f"{path}.{key}" if path else key
            if key in found:
                first = self.result.lines[inner]
                self.problem(key_node, inner, "expected each key once", f"it again (first in line {first})")
                continue
            self.result.lines[inner] = key_node.start_mark.line + 1
            value = self.value(value_node, inner, depth + 1)
            if value is not _BAD:
                found[key] = value
        return found

    def merged(self, node: yaml.MappingNode, path: str, depth: int) -> list[_Pair]:
        """Return what `<<: *name` adds to a mapping: entries of the mappings named first, without its own."""
        merges = [pair for pair in node.value if _is_merge(pair[0])]
        for key_node, _ in merges[1:]:
            self.problem(key_node, f"{path}.<<".removeprefix("."), "expected each key once", "it again")
        added: dict[str, _Pair] = {}
        for source in _sources(merges[0][1]) if merges else []:
            if not isinstance(source, yaml.MappingNode):
                expected = "expected a mapping, or a list of mappings, after '<<:'"
                got = f"'{source.value}'" if isinstance(source, yaml.ScalarNode) else "a list"
                self.problem(source, f"{path}.<<".removeprefix("."), expected, got)
                continue
            for pair in self.entries(source, path, depth + 1):
                added.setdefault(str(pair[0].value), pair)
        own = {str(key_node.value) for key_node, _ in _own(node)}
        return [pair for name, pair in added.items() if name not in own]

    def entries(self, node: yaml.MappingNode, path: str, depth: int) -> list[_Pair]:
        """Return all entries of a mapping, those that it merges first."""
        self.count += len(node.value)
        if self.count > MAX_VALUES or depth > MAX_DEPTH:  # merges of merges repeat each other
            raise _TooMuch(f"expected at most {MAX_VALUES:,} values")
        return [*self.merged(node, path, depth), *_own(node)]

    def scalar(self, node: yaml.Node, path: str) -> Any:
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if isinstance(node, yaml.ScalarNode) and (wrong := _wrong_text(kind, text)):
            self.problem(node, path, *wrong)
            return _BAD
        try:
            if kind in _READERS and isinstance(node, yaml.ScalarNode):
                return _READERS[kind](text)
        except ValueError:
            pass  # `!!int abc`
        self.problem(node, path, "expected a plain value", f"the tag {node.tag.replace(_TAG, '!!')}"[:60])
        return _BAD


def _is_merge(key: yaml.Node) -> bool:
    """Return whether a key is YAML's `<<`, not in quotes."""
    return isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None


def _own(node: yaml.MappingNode) -> list[_Pair]:
    return [pair for pair in node.value if not _is_merge(pair[0])]


def _sources(node: yaml.Node) -> list[yaml.Node]:
    """Return what stands after `<<:`, one by one."""
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def _wrong_text(kind: str, text: str) -> tuple[str, str] | None:
    """Return what is expected of a value's text and what it is instead, None if it is right."""
    if len(text) > MAX_TEXT:
        return f"expected a value of at most {MAX_TEXT:,} characters", f"{len(text):,}"
    if found := _NO_TEXT.search(text):
        return "expected printable text", f"the character {found[0]!r}"
    if kind == "int" and _INT.match(text) and (len(text) > 100 or abs(_integer(text)) > LARGEST_INTEGER):
        return "expected an integer of at most 64 bits", f"{text[:20]}..."
    return None


def _integer(text: str) -> int:
    """Return the integer that YAML writes as 12, 1_000, 0x1f or 0o17."""
    return int(text.replace("_", ""), 0 if re.match(r"[-+]?0[xo]", text) else 10)


_READERS: dict[str, Any] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": _integer,
    "float": lambda text: float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}

"""From what a user wrote to checked knobs, or to the problems with it."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from bdtune.errors import MOST_PROBLEMS, Problem, join, nearest
from bdtune.knobs import K, Knobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pydantic_core import InitErrorDetails


LARGEST_WHOLE = 2**53
"""Above it a float does not say which integer it stands for."""


def show(value: Any) -> str:
    """Return a value as it would be written in YAML, cut to 60 characters."""
    text = f"'{value}'" if isinstance(value, str) else json.dumps(value, default=str).replace('"', "'")
    return text if len(text) <= 60 else text[:57] + "..."


def check(cls: type[K], raw: Any, what: str) -> tuple[K | None, list[Problem]]:
    """Build `cls` from plain values; `what` names it in messages ("gssd"). Paths of problems start below it.

    Types are strict: text is no number and `true` is no 1; only a whole float such as `1e4` may stand
    for an integer.
    """
    if not isinstance(raw, dict):
        return None, [Problem("", f"expected a mapping with {what}'s settings", show(raw))]
    try:
        return cls.model_validate_json(json.dumps(raw), strict=True, by_alias=True, by_name=False), []
    except ValidationError as error:
        errors = error.errors(include_url=False)[:MOST_PROBLEMS]
    mended = _whole_floats_as_ints(raw, errors)
    if mended is not None:
        return check(cls, mended, what)
    return None, problems_of(cls, errors, what)


def problems_of(cls: type[Knobs], errors: Sequence[Any], what: str) -> list[Problem]:
    """Return pydantic's errors about the knobs of a class as problems, one for each path."""
    found: dict[str | Problem, Problem] = {}
    for each in errors:
        problem = _problem(cls, each, what)
        # Each member of a union has its say on one path: the first stands for all.
        found.setdefault(problem if each["type"] == "problem" else problem.path, problem)
    return list(found.values())


def check_each(cls: type[Knobs], raw: dict[str, Any], what: str) -> tuple[dict[str, Any], list[Problem]]:
    """Return the fields of `cls` that are right, defaults included, and all that is wrong with the others."""
    found, problems = check(cls, raw, what)
    wrong = {re.split(r"[.[]", problem.path)[0] for problem in problems}
    if found is None:
        found, _ = check(cls, {key: value for key, value in raw.items() if key not in wrong}, what)
    assert found is not None, f"each field of {cls.__name__} is checked by itself and has a default"
    return {name: getattr(found, name) for name in cls.model_fields if name not in wrong}, problems


def refusal(problems: Sequence[Problem]) -> ValidationError:
    """Return the error with which a field's validator hands problems, relative to the field, to `check`."""
    details: list[InitErrorDetails] = [
        {"type": PydanticCustomError("problem", "{problem}", {"problem": problem}), "input": problem.got}
        for problem in problems
    ]
    return ValidationError.from_exception_data("problems", details)


def unknown(key: str, parent: str, choices: Iterable[str], what: str, most: int = 16) -> Problem:
    """Return the problem of a name that nothing has; `what` is "a setting", "a knob of gssd".

    All names are listed if there are few, or where none is near, up to `most`.
    """
    names = sorted(choices)
    hint = nearest(key, names)
    listed = f": {', '.join(names)}" if len(names) <= (16 if hint else most) else ""
    return Problem(join(parent, key), f"expected {what}{listed}", show(key), hint=hint, about_key=True)


def knob_paths(cls: type[Knobs], prefix: str = "") -> Iterator[str]:
    """Yield the dotted paths of all knobs of a class, nested ones included."""
    for name, field in cls.model_fields.items():
        path = prefix + (field.alias or name)
        yield path
        if isinstance(field.annotation, type) and issubclass(field.annotation, Knobs):
            yield from knob_paths(field.annotation, f"{path}.")


def _same_leaf(key: str, paths: Sequence[str]) -> str:
    """Return the nested knob that someone who wrote `epochs` may have meant: `simclr.epochs`."""
    same = [path for path in paths if path.rpartition(".")[2] == key]
    return f"Did you mean '{same[0]}'?" if same else ""


def _whole_floats_as_ints(raw: dict[str, Any], errors: list[Any]) -> dict[str, Any] | None:
    """Return `raw` with the floats that stand for integers replaced, or None if there are none."""
    mended, changed = copy.deepcopy(raw), False
    for error in errors:
        value = error["input"]
        if error["type"] != "int_type" or type(value) is not float or not value.is_integer():
            continue
        if abs(value) > LARGEST_WHOLE:
            continue
        spot: Any = mended
        *parents, last = error["loc"]
        for part in parents:
            inside = isinstance(spot, dict) and part in spot
            inside = inside or (isinstance(spot, list) and isinstance(part, int))
            spot = spot[part] if inside else spot  # a union's member name is no key
        if isinstance(spot, dict | list):
            spot[last] = int(value)
            changed = True
    return mended if changed else None


def _problem(cls: type[Knobs], error: Any, what: str) -> Problem:
    path, schema, parent = _locate(_schema(cls), error["loc"])
    kind = error["type"]
    if kind == "problem":
        inside: Problem = error["ctx"]["problem"]
        return inside.under(path)
    if kind == "extra_forbidden":
        key = str(error["loc"][-1])
        inner = path.removesuffix(key).removesuffix(".")
        owner = f"{what}'s {inner}" if inner not in ("", what) else what
        problem = unknown(key, inner, parent.get("properties", {}), f"a knob of {owner}")
        everywhere = [p for p in knob_paths(cls) if "." in p]
        return replace(problem, hint=problem.hint or _same_leaf(key, everywhere))
    if kind in ("value_error", "assertion_error"):
        cause = error["ctx"]["error"]
        if cause.args and isinstance(problem := cause.args[0], Problem):
            return replace(problem, path=path)
        message = str(cause)
        expected = message if message.startswith("expected") else f"expected settings that agree: {message}"
        return Problem(path, expected)
    if kind == "missing":
        return Problem(path, f"expected {describe(schema, _schema(cls))}", "nothing")
    expected = describe(schema, _schema(cls)) if schema else error["msg"][0].lower() + error["msg"][1:]
    hint = nearest(error["input"], schema["enum"]) if "enum" in schema and error["input"] else ""
    return Problem(path, f"expected {expected}", show(error["input"]), hint=hint)


@cache
def _schema(cls: type[Knobs]) -> dict[str, Any]:
    return cls.model_json_schema()


def _resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _not_null(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return what a schema accepts beside null, where that is one thing: pydantic names no member of it."""
    members = [_resolve(member, root) for member in schema.get("anyOf", [])]
    others = [member for member in members if member.get("type") != "null"]
    return others[0] if len(others) == 1 else schema


def _locate(root: dict[str, Any], loc: tuple[int | str, ...]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the dotted path of an error, the schema there and that of its parent.

    Pydantic puts the names of union members into `loc`; they are no part of the path.
    """
    path, schema, parent = "", root, root
    for part in loc:
        parent = schema = _not_null(_resolve(schema, root), root)
        members = [_resolve(member, root) for member in schema.get("anyOf", [])]
        for option in [schema, *members]:
            if isinstance(part, str) and part in option.get("properties", {}):
                path, schema, parent = join(path, part), option["properties"][part], option
                break
            if isinstance(part, str) and isinstance(option.get("additionalProperties"), dict):
                path, schema, parent = join(path, part), option["additionalProperties"], option
                break
            if isinstance(part, int) and ("items" in option or "prefixItems" in option):
                items = option.get("prefixItems", [])
                schema = items[part] if part < len(items) else option.get("items", {})
                path, parent = f"{path}[{part}]", option
                break
        else:
            if isinstance(part, str) and part == loc[-1] and not members:
                path = join(path, part)  # a key that the schema does not know
    return path, _resolve(schema, root), parent


def describe(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """Say in words what a JSON schema accepts: "a number from 0 to 1", "'sgd' or 'adam'"."""
    schema = _resolve(schema, root)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(describe(member, root) for member in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = [show(value) for value in schema.get("enum", [schema.get("const")])]
        return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} or {values[-1]}"
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("an integer" if kind == "integer" else "a number") + _range(schema)
    if kind == "array":
        return _list(schema, root)
    if kind == "string":
        return "a path" if schema.get("format") == "path" else "text"
    mapping = "a mapping that is not empty" if schema.get("minProperties") else "a mapping"
    return {"boolean": "true or false", "null": "null", "object": mapping}.get(str(kind), "another value")


def _range(schema: dict[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f" from {low:g} to {high:g}"
    parts = []
    if low is not None or above is not None:
        parts.append(f"of at least {low:g}" if low is not None else f"above {above:g}")
    if high is not None or below is not None:
        parts.append(f"at most {high:g}" if high is not None else f"below {below:g}")
    return " " + " and ".join(parts) if parts else ""


def _list(schema: dict[str, Any], root: dict[str, Any]) -> str:
    items = schema.get("prefixItems")
    low, high = schema.get("minItems"), schema.get("maxItems")
    count = f"{low} values" if low is not None and low == high else "at least one value" if low else "values"
    inner = describe(items[0], root) if items else describe(schema.get("items", {}), root)
    return f"a list of {count}" + ("" if inner == "another value" else f", each {inner}")

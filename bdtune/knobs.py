"""Knobs: frozen, typed, range-checked settings. Every setting of the project is a field of such a class."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import textwrap
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bdtune.effects import effects_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Self

K = TypeVar("K", bound="Knobs")

Rate = Annotated[float, Field(ge=0.0, le=1.0)]
"""A fraction in [0, 1]."""


LONGEST_PATH, LONGEST_PART = 4095, 255
"""Bytes of a path, and of a name in it, that Linux's file systems take."""


def absolute(path: Path | None) -> Path | None:
    """Return a path from the root, links kept; one that starts with ~ from the user's home.

    Raises `ValueError` for a path that no file can have, or the home of a user that there is not.
    """
    if path is None:
        return None
    try:
        whole = Path(os.path.abspath(path.expanduser()))  # noqa: PTH100  keeps links
    except RuntimeError:
        raise ValueError(f"expected a path, or the home of a user that exists, got '{path}'") from None
    if max(map(len, map(os.fsencode, whole.parts))) > LONGEST_PART or len(os.fsencode(whole)) > LONGEST_PATH:
        expected = f"expected a path of names of at most {LONGEST_PART} bytes"
        raise ValueError(f"{expected}, got '{str(path)[:60]}...'")
    return whole


UserFile = Annotated[Path | None, AfterValidator(absolute)]
"""A file that the user names: absolute from the start, as workers run in folders of their own."""


class Frozen(BaseModel):
    """Base of settings and of a stage's inputs: unknown fields are errors, instances never change."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with other values; what was worked out from the old ones (its key) is forgotten."""
        copy = super().model_copy(update=update, deep=deep)
        for name in copy.__dict__.keys() - type(self).model_fields.keys():
            del copy.__dict__[name]
        return copy


class Knobs(Frozen):
    """Base of everything that is configured; markers of `bdtune.effects` say what a knob can change.

    A subclass that has other defaults for inherited knobs names them: `class Naive(Supervised,
    defaults={"epochs": 20})`. Ranges and explanations stay those of the base.
    """

    def __init_subclass__(cls, *, defaults: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, *, defaults: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, value in (defaults or {}).items():
            if name not in cls.model_fields:
                raise TypeError(f"{cls.__name__}: defaults names '{name}', which is no inherited knob")
            cls.model_fields[name].default = value
        if defaults:
            cls.model_rebuild(force=True)

    @final
    def identity(self, view: str | None = None) -> dict[str, Any]:
        """Return what this object adds to a key: the knobs that can change it, defaults included.

        With a `view` those that can change this part of a result: see `bdtune.effects`.
        """
        knobs: dict[str, Any] = {}
        for name, effects in effects_of(type(self)).items():
            if not effects or all(effect.enters(self, view) for effect in effects):
                value = getattr(self, name)
                for effect in effects:
                    value = effect.seen(value, name)
                knobs[name] = identity_of(value, view)
        return self.with_name(knobs)

    def to(self, cls: type[K], **others: Any) -> K:
        """Return a `cls` with the values of the knobs that both classes have, and with `others`."""
        shared = (type(self).model_fields.keys() & cls.model_fields.keys()) - others.keys()
        return cls(**{name: getattr(self, name) for name in shared}, **others)

    def with_name(self, knobs: dict[str, Any]) -> dict[str, Any]:
        """Return the knobs of an identity with what names their class in it; by default nothing does."""
        return knobs


def identity_of(value: Any, view: str | None = None) -> Any:
    """Turn knobs and containers of knobs into plain JSON values."""
    if isinstance(value, Knobs):
        return value.identity(view)
    if isinstance(value, list | tuple):
        return [identity_of(item, view) for item in value]
    if isinstance(value, dict):
        return {str(key): identity_of(item, view) for key, item in value.items()}
    return value


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Return the sentence below each field of a class's own body, read from its source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if tree.body and isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for field, text in itertools.pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(about))):
                found[name] = " ".join(about.split())
    return found


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return for each dotted path its shortest ending that no other path shares; `a.name` counts as `a`."""
    paths = list(dict.fromkeys(paths))
    parts = {path: path.removesuffix(".name").split(".") for path in paths}
    short: dict[str, str] = {}
    for path in paths:
        for length in range(1, len(parts[path]) + 1):
            ending = parts[path][-length:]
            if sum(other[-length:] == ending for other in parts.values()) == 1:
                break
        else:
            ending = path.split(".")
        short[path] = ".".join(ending)
    return short

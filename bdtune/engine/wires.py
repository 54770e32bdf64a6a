"""The inputs of a stage: the keyword parameters of the method that computes it, with their types.

    def run(self, ctx: Context, *, losses: Artefact, data: LabelSet) -> Artefact

A node is checked against them when it is built, so that a missing or misspelt input is an error at planning.
Types are compared by name: a type that only annotates need not be imported at run time.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from bdtune.errors import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Wire:
    """One input of a stage."""

    types: frozenset[str]
    """Names of the types that it may have; empty: any."""
    required: bool

    @property
    def expected(self) -> str:
        """The types for messages."""
        return " or ".join(sorted(self.types))


@dataclass(frozen=True)
class Wires:
    """All inputs of a stage."""

    named: Mapping[str, Wire]
    more: bool
    """Whether it takes inputs of other names, too."""

    def problems(self, stage: str, given: Mapping[str, type]) -> Iterator[Problem]:
        """Yield what is wrong with inputs, given as the type that each will have."""
        for name, wire in self.named.items():
            if wire.required and name not in given:
                hint = nearest(name, given.keys() - self.named.keys())
                yield Problem(
                    f"{stage}.{name}", f"expected input '{name}' of stage '{stage}'", "none", hint=hint
                )
        for name, found in given.items():
            known = self.named.get(name)
            if known is None and not self.more:
                expected = f"expected one of the inputs of stage '{stage}': {', '.join(self.named) or 'none'}"
                hint = nearest(name, self.named)
                yield Problem(f"{stage}.{name}", expected, f"'{name}'", hint=hint)
            elif known is not None and not _fits(found, known.types):
                expected = f"expected input '{name}' of stage '{stage}' to be {known.expected}"
                yield Problem(f"{stage}.{name}", expected, found.__name__)


@cache
def input_problems(
    cls: type, method: str, stage: str, given: tuple[tuple[str, type], ...]
) -> tuple[Problem, ...]:
    """Return what is wrong with a stage's inputs; a plan asks the same thousands of times."""
    return tuple(wires_of(cls, method).problems(stage, dict(given)))


@cache
def wires_of(cls: type, method: str) -> Wires:
    """Return the inputs that a method of a class names."""
    named, more = {}, False
    for parameter in inspect.signature(getattr(cls, method)).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            more = True
        elif parameter.kind is parameter.KEYWORD_ONLY:
            required = parameter.default is parameter.empty
            named[parameter.name] = Wire(_types(parameter.annotation), required)
    return Wires(named, more)


def _types(annotation: object) -> frozenset[str]:
    """Return the names of the types in an annotation such as `Artefact | None`."""
    if annotation in (inspect.Parameter.empty, "Any", object):
        return frozenset()
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    names = {part.strip().rpartition(".")[2] for part in text.split("|")}
    return frozenset(names - {"None"})


@cache
def _fits(found: type, wanted: frozenset[str]) -> bool:
    return not wanted or found is object or any(base.__name__ in wanted for base in found.__mro__)

"""The rows and columns of a cross table: which settings they are, and what a group of trials has there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from bdtune.config.sweep import TableLayout
from bdtune.errors import Problem, UserError, nearest
from bdtune.knobs import short_names
from bdtune.plugins.metric import METRICS
from bdtune.report.groups import varying
from bdtune.report.selection import GIVEN
from bdtune.trials.results import SEED, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bdtune.report.groups import Group
    from bdtune.trials.results import Scalar

PLUGINS = ("dataset", "attack", "defense", "model")
EXPANDED = ("dataset", "attack")
"""Plugins that stand for their knobs as well: no defender chooses those, so no cell may mix them."""
UNDEFENDED = "undefended"

Key = tuple["Scalar", ...]
L = TypeVar("L", bound=TableLayout)


@dataclass(frozen=True)
class Axis:
    """A setting along the rows or columns, with the further knobs that tell its values apart."""

    path: str
    name: str
    knobs: Mapping[str, str]
    """Short names by dotted path."""

    def key(self, group: Group) -> Key:
        """Return the values of a group here; equal ones share a row or column."""
        if is_undefended(group) and self.is_defense:
            return (UNDEFENDED,)
        return tuple(group.params.get(path) for path in (self.path, *self.knobs))

    def text(self, key: Key) -> str:
        """Return values in words: "lfd", "badnets pattern=grid", "-" for a knob that a trial lacks."""
        if key == (UNDEFENDED,):
            return UNDEFENDED
        head = "no attack" if (self.path, key[0]) == ("attack", "none") else show(key[0])
        head = "-" if key[0] is None else head
        knobs = zip(self.knobs.values(), key[1:], strict=True)
        return " ".join([head, *(f"{name}={show(value)}" for name, value in knobs if value is not None)])

    @property
    def is_defense(self) -> bool:
        """Whether a baseline has no value of its own here."""
        return self.path.partition(".")[0] == "defense"


def is_undefended(group: Group) -> bool:
    """Return whether a group is a baseline, or a setting without a defense."""
    return group.is_baseline or group.params.get("defense") == "none"


def completed(layout: TableLayout | None, groups: Sequence[Group]) -> TableLayout:
    """Return a layout with rows and columns: as given, else data sets and attacks against defenses.

    What no defender chooses, varies, and is not named becomes a row setting, so that no cell mixes it. What
    no trial has is left out, as the command line may have replaced its plugin.
    """
    layout = layout or TableLayout()
    varied = varying(groups)
    present = {name for group in groups for name in group.params}
    rows, columns = ([p for p in paths if p in present] for paths in (layout.rows, layout.columns))
    if not rows and not columns:
        free = [path for path in varied if path.partition(".")[0] not in GIVEN]
        rows, columns = ([], ["defense"]) if "defense" in varied else (free, [])
    named = {*rows, *columns}
    missing = [path for path in varied if path.partition(".")[0] in GIVEN and path not in named]
    heads = dict.fromkeys(p.partition(".")[0] if p.startswith(EXPANDED) else p for p in missing)
    rows = [*(head for head in heads if head not in named), *rows]
    named_defense = any(path.partition(".")[0] == "defense" for path in (*rows, *columns))
    if not named_defense and (
        (layout.undefended and any(map(is_undefended, groups))) or not (rows or columns)
    ):
        columns = [*columns, "defense"]
    if not rows:
        rows, columns = columns, []
    return layout.model_copy(update={"rows": tuple(rows), "columns": tuple(columns)})


def axes_of(layout: TableLayout, groups: Sequence[Group]) -> tuple[list[Axis], list[Axis]]:
    """Return the axes of the rows and of the columns of a completed layout.

    A plugin that no defender chooses gets as many of its varying knobs as it takes to tell its settings
    apart, given all that the layout names.
    """
    defended = [group for group in groups if not group.is_baseline]
    paths = [*layout.rows, *layout.columns]
    varied = [path for path in varying(groups) if path not in paths]
    found: dict[str, list[str]] = {path: [] for path in paths}
    told = list(paths)
    for knob in varied:
        head = knob.partition(".")[0]
        if head in EXPANDED and head in found and _tells_apart(knob, told, defended):
            found[head].append(knob)
            told.append(knob)
    names = short_names(told)
    axes = [Axis(path, names[path], {knob: names[knob] for knob in found[path]}) for path in paths]
    return axes[: len(layout.rows)], axes[len(layout.rows) :]


def _tells_apart(knob: str, told: Sequence[str], groups: Sequence[Group]) -> bool:
    """Return whether groups with equal values of what is told differ in a knob."""
    values: dict[Key, set[tuple[str, Scalar]]] = {}
    for group in groups:
        own = (type(group.params.get(knob)).__name__, group.params.get(knob))
        values.setdefault(tuple(group.params.get(path) for path in told), set()).add(own)
    return any(len(found) > 1 for found in values.values())


def given_by(axes: Sequence[Axis], key: tuple[Key, ...]) -> tuple[Key, ...] | None:
    """Return what no defender chooses in a row or column; None where it is undefended."""
    if (UNDEFENDED,) in key:
        return None
    return tuple(
        own for axis, own in zip(axes, key, strict=True) if axis.path.partition(".")[0] in (*GIVEN, SEED)
    )


def asked_layout(layout: L, groups: Sequence[Group], **words: Sequence[str] | None) -> L:
    """Return a layout with the `rows`, `columns` and `cells` that the command line gives.

    Summary rows, which are over attacks, go where attacks no longer stand in the rows. Raises `UserError`
    with all names that no trial has, each with the nearest one.
    """
    given = {key: tuple(names) for key, names in words.items() if names is not None}
    settings = dict.fromkeys(name for group in groups for name in group.params if name != "seed")
    metrics = dict.fromkeys([*METRICS.names, *(m for g in groups for t in g.done for m in t.metrics)])
    problems = []
    for key, names in given.items():
        known, what = (metrics, "metric") if key == "cells" else (settings, "setting")
        problems += [_unknown(key, name, list(known), what) for name in names if name not in known]
        if key == "columns":
            twice = set(names) & set(given.get("rows", ()))
            problems += [Problem("--columns", "expected other settings than --rows", n) for n in twice]
    if problems:
        raise UserError(problems)
    if "rows" in given and "columns" not in given:
        given["columns"] = tuple(path for path in layout.columns if path not in given["rows"])
    if "columns" in given and "rows" not in given:
        given["rows"] = tuple(path for path in layout.rows if path not in given["columns"])
    update: dict[str, Any] = dict(given)
    if "rows" in given and not any(path.partition(".")[0] == "attack" for path in given["rows"]):
        update["summary"] = ()
    return layout.model_copy(update=update)


def _unknown(key: str, name: str, known: Sequence[str], what: str) -> Problem:
    listed = ", ".join(known) if len(known) <= 16 else f"such as {', '.join(known[:8])}"
    expected = f"expected a {what} that some trial has: {listed}"
    return Problem(f"--{key}", expected, f"'{name}'", hint=nearest(name, known))

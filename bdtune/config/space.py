"""What a sweep varies around its base trial, and where each value stands in the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bdtune.config.trial import PLUGIN_KINDS, section_params

if TYPE_CHECKING:
    from bdtune.config.sweep import Axes, When


class Assignment(NamedTuple):
    """One setting of one point, and where its value stands: `grid.defense.beta_nd[2]`."""

    path: str
    value: Any
    label: str

    @property
    def section(self) -> str:
        """The trial's setting that it belongs to: "defense"."""
        return self.path.partition(".")[0]


Point = tuple[Assignment, ...]


@dataclass
class Space:
    """A sweep's base trial, as plain values and as read, and what varies around it.

    `sections` lacks what is wrong in the base; `raw` then holds what is known of it.
    """

    raw: dict[str, Any]
    sections: dict[str, Any]
    grid: Axes = field(default_factory=dict)
    zip: tuple[Axes, ...] = ()
    vary: Axes = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    when: tuple[When, ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()
    overridden: frozenset[str] = frozenset()
    """Settings that the command line gives: the file's `when` and `exclude` need not fit them."""

    def params(self) -> dict[str, Any]:
        """Return the base's settings by dotted path."""
        sections = [section_params(key, value) for key, value in self.sections.items()]
        return {path: value for section in sections for path, value in section.items()}


def crossed(label: str, axes: Axes) -> list[list[Point]]:
    """Return the points of each axis; `label` is where the axes stand: "grid"."""
    return [
        [(Assignment(path, value, f"{label}.{path}[{i}]"),) for i, value in enumerate(values)]
        for path, values in axes.items()
    ]


def plugin_or_knob(path: str) -> str:
    """Return a setting's path; that of a plugin's name or preset is the plugin's own."""
    head, _, rest = path.partition(".")
    return head if rest in ("name", "preset") and head in PLUGIN_KINDS else path

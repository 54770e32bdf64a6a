"""The trial's attack: none, or an attack, of which some knobs take the place of others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bdtune.errors import ConfigError, Problem
from bdtune.plugins import registry
from bdtune.plugins.field import PluginField

if TYPE_CHECKING:
    from bdtune.plugins.registry import Plugin

RIVALS = {
    "rate": ("count",),
    "count": ("rate",),
    "cover_rate": ("cover_count",),
    "cross_ratio": ("cover_count",),
    "cover_count": ("cover_rate", "cross_ratio"),
}
"""Knobs of attacks of which one takes the other's place, where it is set over a preset or a base trial."""


class AttackField(PluginField):
    """Marks a field as an attack or none; reading one looks at the files that it names."""

    def read(self, raw: Any) -> Plugin | None:
        named = raw.get("name") if isinstance(raw, dict) and len(raw) == 1 else raw
        if raw is None or (isinstance(named, str) and named.casefold() == "none"):
            return None
        attack: Any = super().read(raw)
        if problems := attack.check_files():
            raise ConfigError(problems)
        return attack

    def named(self, mapping: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if mapping.get("name") == "none":
            expected = "expected an attack beside its knobs, as in 'attack=badnets'"
            raise ConfigError([Problem(knob, expected, "none") for knob in mapping if knob != "name"])
        return super().named(mapping)

    def over(self, preset: dict[str, Any], knobs: dict[str, Any]) -> dict[str, Any]:
        return with_knobs(preset, knobs)

    def explained(self, problem: Problem, cls: type[Plugin]) -> Problem:
        """Return the problem of an unknown knob with why there is none, or with the attacks that have it."""
        lacks: dict[str, str] = getattr(cls, "lacks", {})
        if not problem.about_key:
            return problem
        if problem.path in lacks:
            return replace(problem, hint=lacks[problem.path])
        attacks = registry.loadable("attacks").items()
        names = [name for name, attack in attacks if problem.path in attack.model_fields]
        known = problem.hint or not 0 < len(names) <= 3
        return problem if known else replace(problem, hint=f"It is a knob of {' and '.join(names)}")


def with_knobs(base: dict[str, Any], knobs: dict[str, Any]) -> dict[str, Any]:
    """Return the knobs of a plugin set over others: a count, too, takes the place of a rate."""
    given = [name for name, value in knobs.items() if name in RIVALS and value is not None]
    replaced = {rival for name in given for rival in RIVALS[name]}
    return {**{name: value for name, value in base.items() if name not in replaced}, **knobs}

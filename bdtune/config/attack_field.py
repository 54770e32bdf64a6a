"""The trial's attack: none, an attack by name, or a paper's preset with knobs set over it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bdtune.checking import show
from bdtune.errors import ConfigError, Problem
from bdtune.plugins import registry
from bdtune.plugins.field import PluginField
from bdtune.plugins.presets import preset as find_preset

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
        try:
            attack: Any = super().read(raw)
        except ConfigError as error:
            name = raw.get("name") if isinstance(raw, dict) else raw
            slash = isinstance(name, str) and "/" in name
            hint = f"A preset is written as {{preset: {name}}}"
            raise ConfigError([replace(p, hint=hint) if slash else p for p in error.problems]) from None
        if problems := attack.check_files():
            raise ConfigError(problems)
        return attack

    def named(self, mapping: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if mapping.get("name") == "none":
            expected = "expected an attack beside its knobs, as in 'attack=badnets'"
            raise ConfigError([Problem(knob, expected, "none") for knob in mapping if knob != "name"])
        knobs = {knob: value for knob, value in mapping.items() if knob != "preset"}
        preset = mapping.get("preset")
        if preset is None:
            return super().named(knobs)
        if not isinstance(preset, str):
            raise ConfigError(Problem("preset", "expected text", show(preset)))
        owner, base = find_preset(preset)
        name, knobs = super().named({**knobs, "name": knobs.get("name") or owner})
        if name != owner:
            raise ConfigError(Problem("name", f"expected '{owner}', whose preset '{preset}' is", show(name)))
        return name, with_knobs(base, knobs)

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

"""Presets: each paper's conventions under one name, as in `attack: {preset: lfd/bn_g}`.

Shape of a plugin's `presets`: "paper/method" -> knobs.
"""

from __future__ import annotations

from typing import Any

from bdtune.errors import ConfigError, Problem, nearest
from bdtune.plugins import registry


def presets(kind: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return all presets of a kind: "paper/method" -> (plugin, knobs). Imports every file of the kind."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for plugin, cls in registry.loadable(kind).items():
        for name, knobs in getattr(cls, "presets", {}).items():
            if name in found:
                raise ConfigError(f"two {kind} have a preset '{name}': {found[name][0]} and {plugin}")
            found[name] = (plugin, dict(knobs))
    return dict(sorted(found.items()))


def preset(kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return (plugin, knobs) of a preset; raises `ConfigError` with the nearest name for a wrong one."""
    found = presets(kind)
    name = next((each for each in found if each.casefold() == name.casefold()), name)
    if name not in found:
        for known in registry.not_offered(kind).values():
            if name in known.presets:
                raise ConfigError(known.problem("preset", name))
        paper = name.partition("/")[0]
        same = [each for each in found if each.partition("/")[0] == paper]
        papers = dict.fromkeys(each.partition("/")[0] for each in found)
        wanted = f"{paper}'s presets: {', '.join(same)}" if same else f"the presets of {', '.join(papers)}"
        expected = f"expected one of {wanted}"
        raise ConfigError(Problem("preset", expected, got=repr(name), hint=nearest(name, found)))
    return found[name]

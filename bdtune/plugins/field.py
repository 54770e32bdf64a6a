"""A plugin as a field of pydantic's: its name, or a mapping with its name, or a paper's preset, and knobs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import core_schema

from bdtune.checking import check, refusal, show
from bdtune.errors import ConfigError, Problem
from bdtune.knobs import Knobs
from bdtune.plugins import registry
from bdtune.plugins.presets import preset as find_preset
from bdtune.plugins.presets import presets
from bdtune.plugins.registry import Plugin

if TYPE_CHECKING:
    from pydantic_core import CoreSchema


@dataclass(frozen=True)
class PluginField:
    """Marks a field as a plugin of one kind, as in `model: Annotated[Model, PluginField("models", "vgg16")]`.

    The plugin's file is loaded when a value is read. Problems have paths below the field.
    """

    kind: str
    example: str
    """A name for messages."""

    def __get_pydantic_core_schema__(self, *_: object) -> CoreSchema:
        write = core_schema.plain_serializer_function_ser_schema(plain)
        return core_schema.no_info_plain_validator_function(self._validated, serialization=write)

    def __get_pydantic_json_schema__(self, *_: object) -> dict[str, object]:
        return {}

    def _validated(self, value: object) -> Plugin | None:
        if isinstance(value, Plugin):
            return value
        try:
            named = isinstance(value, str)
            return _by_name(self, value, os.environ.get("BDTUNE_PLUGINS")) if named else self.read(value)
        except ConfigError as error:
            raise refusal(error.problems) from None

    def read(self, raw: object) -> Plugin | None:
        """Return the plugin that plain values describe; raises `ConfigError` with all problems."""
        mapping = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(mapping, dict):
            raise ConfigError(self._form(raw))
        name, knobs = self.named(mapping)
        try:
            cls = registry.load(self.kind, name)
        except ConfigError as error:
            problems = [replace(p, path="name" if isinstance(raw, dict) else "") for p in error.problems]
            if "/" in name and presets(self.kind):
                problems = [replace(p, hint=f"A preset is written as {{preset: {name}}}") for p in problems]
            raise ConfigError(problems) from None
        plugin, problems = check(cls, knobs, name)
        if plugin is None:
            raise ConfigError([self.explained(problem, cls) for problem in problems])
        assert isinstance(plugin, Plugin)
        return plugin

    def named(self, mapping: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the plugin's name and its knobs, those set over a preset's; raises `ConfigError`."""
        knobs, preset = dict(mapping), mapping.get("preset")
        if preset is None or not presets(self.kind):
            return self._apart(knobs)
        if not isinstance(preset, str):
            raise ConfigError(Problem("preset", "expected text", show(preset)))
        owner, base = find_preset(self.kind, preset)
        del knobs["preset"]
        name, knobs = self._apart({**knobs, "name": knobs.get("name") or owner})
        if name != owner:
            raise ConfigError(Problem("name", f"expected '{owner}', whose preset '{preset}' is", show(name)))
        return name, self.over(base, knobs)

    def over(self, preset: dict[str, Any], knobs: dict[str, Any]) -> dict[str, Any]:
        """Return knobs set over those of a preset, nested ones included."""
        both = dict(preset)
        for knob, value in knobs.items():
            nested = isinstance(both.get(knob), dict) and isinstance(value, dict)
            both[knob] = self.over(both[knob], value) if nested else value
        return both

    def _apart(self, mapping: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the name that a mapping has, and the rest of it."""
        knobs = {knob: value for knob, value in mapping.items() if (knob, value) != ("preset", None)}
        name = knobs.pop("name", None)
        if name is None:
            raise ConfigError(self._form(mapping))
        if not isinstance(name, str):
            raise ConfigError(Problem("name", "expected text", show(name)))
        return name, knobs

    def explained(self, problem: Problem, cls: type[Plugin]) -> Problem:
        """Return a problem with a knob of `cls`, with what may help."""
        return problem

    def _form(self, raw: object) -> Problem:
        return Problem("", f"expected a name, or a mapping such as {{name: {self.example}, ...}}", show(raw))


@lru_cache(maxsize=256)
def _by_name(field: PluginField, name: str, _folders: str | None) -> Plugin | None:
    """Return a plugin with its defaults, made once: each trial that is read has some."""
    return field.read(name)


def plain(value: object) -> object:
    """Return a setting as JSON-able values, as it is read again: a plugin with its name and every knob."""
    name = {"name": value.plugin_name()} if isinstance(value, Plugin) else {}
    if isinstance(value, Knobs):
        return {**name, **value.model_dump(mode="json", by_alias=True)}
    return str(value) if isinstance(value, Path) else value

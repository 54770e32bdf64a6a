"""Which sweep a sweep is: what decides its trials' results, apart from what it varies.

Two runs belong to one sweep if all settings that neither of them varies are equal, and their searches.
What only says how trials are run, chosen or described belongs to no identity: `resources`, `retries`,
`speed`, `scheduler`, `select`, `description`, `published`, `notes`, `table`, `keep`, `weights_gb`. Nor does
the training seed of a finite sweep: another one is a replicate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.config.space import plugin_or_knob
from bdtune.config.trial import PLUGIN_KINDS, TRIAL_KEYS, TrialSpec
from bdtune.effects import no_effect
from bdtune.knobs import Knobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bdtune.config.sweep import SweepSpec

SHOWN = 3
"""Differences that a message names."""


@dataclass(frozen=True)
class Difference:
    """A setting that two sweeps do not share; the text "-" stands for one that a sweep does not have."""

    path: str
    theirs: str
    ours: str


@dataclass(frozen=True)
class Identity:
    """What makes runs one sweep, in JSON values."""

    settings: Mapping[str, Any]
    """Every setting of the base trial that can change a result, by dotted path."""
    axes: tuple[str, ...]
    """Dotted paths that some run varied."""
    search: Mapping[str, Any] | None = None
    """Sampler, its seed, space and objectives."""

    @classmethod
    def of(cls, spec: SweepSpec) -> Identity:
        """Return a sweep's identity; raises `UserError` where a file that the attack names is gone.

        Device and precision are those that trials get: a sweep on GPUs is another one than on CPUs.
        """
        numerics = spec.trial.numerics.resolved(spec.device)
        trial = spec.trial.model_copy(update={"numerics": numerics})
        axes = {*spec.axis_paths(), *(() if spec.search else ("seed",))}
        search = spec.search.model_dump(mode="json", exclude={"trials"}) if spec.search else None
        # As they are read from a file again: lists for tuples.
        return cls(json.loads(json.dumps(deciding(trial))), tuple(sorted(axes)), search)

    def extended(self, other: Identity) -> Identity:
        """Return the identity with the axes of another run of this sweep."""
        return Identity(self.settings, tuple(sorted({*self.axes, *other.axes})), self.search)

    def differences(self, other: Identity) -> list[Difference]:
        """Return what keeps another run from being one of this sweep; nothing if it is one."""
        found = _differing(_flat_search(self.search), _flat_search(other.search))
        varied = {plugin_or_knob(path) for path in (*self.axes, *other.axes)}
        mine, theirs = (_without(each.settings, varied) for each in (self, other))
        return found + _differing(mine, theirs)


def deciding(trial: TrialSpec) -> dict[str, Any]:
    """Return every setting that can change a trial's result by its dotted path; a plugin's own is its name.

    A file stands for its content. Two trials have equal ones if they have one `trial_id`.
    """
    found: dict[str, Any] = {}
    for key in TRIAL_KEYS:
        if key not in no_effect(TrialSpec):
            value = getattr(trial, key)
            found |= _deciding(key, "none" if value is None and key in PLUGIN_KINDS else value)
    return found


def in_words(differences: Iterable[Difference]) -> str:
    """Return differences as "dataset=digits, here cifar10", a few of them one by one."""
    found = list(differences)
    shown = [f"{one.path}={one.theirs}, here {one.ours}" for one in found[:SHOWN]]
    more = len(found) - len(shown)
    return "; ".join([*shown, *([f"and {more} more"] if more else [])])


def _deciding(path: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Knobs):
        return {path: value}
    found: dict[str, Any] = {}
    fields, parts = type(value).model_fields, value.identity()
    parts |= parts.pop("knobs", {})  # of a stage they lie one level deeper
    for name, part in parts.items():
        inner = getattr(value, name) if name in fields else part
        alias = fields[name].alias if name in fields else None
        at = path if name == "name" else f"{path}.{alias or name}"
        found |= _deciding(at, inner if isinstance(inner, Knobs) else part)
    return found


def _flat_search(search: Mapping[str, Any] | None) -> dict[str, Any]:
    if search is None:
        return {}
    space = {f"search.space.{path}": {d["kind"]: d["values"]} for path, d in search["space"].items()}
    return {**{f"search.{key}": value for key, value in search.items() if key != "space"}, **space}


def _without(settings: Mapping[str, Any], varied: Iterable[str]) -> dict[str, Any]:
    """Return settings that are no varied ones, nor knobs of a varied plugin."""
    heads = tuple(f"{path}." for path in varied)
    return {path: value for path, value in settings.items() if not f"{path}.".startswith(heads)}


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Difference]:
    """Return differing settings in the order of the trial's; of another plugin its name, not its knobs."""
    paths = [path for path in {**ours, **theirs} if theirs.get(path) != ours.get(path)]
    paths = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    return [Difference(path, _text(theirs, path), _text(ours, path)) for path in paths]


def _text(settings: Mapping[str, Any], path: str) -> str:
    if path not in settings:
        return "-"
    value = settings[path]
    return value if isinstance(value, str) else json.dumps(value)

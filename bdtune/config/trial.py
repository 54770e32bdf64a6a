"""One trial: a data set, an attack, a defense, a model and a seed, with every knob fixed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, create_model

from bdtune.config.checking import Fault, check, show, unknown
from bdtune.config.document import DEFAULT_PLUGINS, PLUGIN_KINDS, TRIAL_KEYS, with_knobs
from bdtune.engine.key import canonical_json, key_of
from bdtune.engine.numerics import Numerics
from bdtune.errors import ConfigError, DataError, Problem
from bdtune.knobs import Knobs, UserFile
from bdtune.plugins import registry
from bdtune.plugins.defense import Offer
from bdtune.plugins.registry import Plugin
from bdtune.training.evaluate import Evaluate

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.defense import Defense
    from bdtune.plugins.model import Model
else:  # the bases would import torch; what the registry loads is known to be one of them
    Attack = Dataset = Defense = Model = Plugin

Scalar = str | int | float | bool | None


class TrialSpec(Knobs):
    """A trial with all knobs fixed. Equal specs give equal results, whatever `no_effect` holds."""

    no_effect: ClassVar[frozenset[str]] = frozenset({"data_root"})

    dataset: Dataset
    """Where images come from."""
    attack: Attack | None
    """What poisons them; none for a clean run."""
    defense: Defense
    """What makes a classifier of the poisoned set; "none" trains on it as it is."""
    model: Model
    """The network."""
    seed: int = Field(0, ge=0)
    """Seed of every training and, unless `data_seed` is given, of the poisoned set."""
    data_seed: int | None = Field(None, ge=0)
    """Seed of what is held out and, unless `attack.seed` is given, of the poison plan; none: `seed`."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Fraction of the training set that is held out, with observed labels, to choose settings honestly."""
    evaluation: Evaluate = Evaluate()
    """What is measured of the classifier, of its baseline's as well."""
    numerics: Numerics = Numerics()
    """Device and precision."""
    data_root: UserFile = None
    """Folder that holds the data sets; by default the variable BDTUNE_DATA."""
    pipeline: Literal["auto", "resident", "stream"] = "auto"
    """resident: all images in memory; stream: in blocks, so in another order; auto: resident if it fits."""

    @property
    def seed_of_data(self) -> int:
        """The seed that the poisoned set is made by."""
        return self.seed if self.data_seed is None else self.data_seed


_PLAIN: dict[str, type[Knobs]] = {
    key: create_model(key, __base__=Knobs, **{key: (field.annotation, field)})  # type: ignore[call-overload]
    for key, field in TrialSpec.model_fields.items()
    if key not in PLUGIN_KINDS
}
"""The settings that are no plugins, each by itself, with the type, range and default of `TrialSpec`."""


def parse_trial(raw: Mapping[str, Any], *, check_data: bool = True) -> tuple[TrialSpec | None, list[Fault]]:
    """Read a trial's settings; returns all that is wrong with them, by dotted path, when there is no spec."""
    sections, faults = parse_sections(raw)
    spec = build(sections)
    for keys, faults_of in cross_checks(data=check_data):
        if all(key in sections for key in keys):
            faults += faults_of(spec)
    return (None if faults else spec), faults


def parse_sections(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Read each setting by itself; those that are wrong are missing from the result."""
    sections: dict[str, Any] = {}
    faults = [unknown(key, "", TRIAL_KEYS, "a setting of the trial") for key in raw if key not in TRIAL_KEYS]
    for key in TRIAL_KEYS:
        value, wrong = parse_section(key, raw.get(key, _absent(key)))
        faults += wrong
        if not wrong:
            sections[key] = value
    return sections, faults


def parse_section(key: str, raw: Any) -> tuple[Any, list[Fault]]:
    """Read one setting of a trial; the faults' paths start with its key."""
    if key in PLUGIN_KINDS:
        plugin, faults = _parse_plugin(key, raw)
        return plugin, [fault.under(key) for fault in faults]
    plain, faults = check(_PLAIN[key], {key: raw}, key)
    value = None if plain is None else getattr(plain, key)
    return value, faults


def build(sections: Mapping[str, Any]) -> TrialSpec:
    """Put checked settings together, without checking them again; a spec of some only is for checks."""
    return TrialSpec.model_construct(None, **sections)


Checked = tuple[tuple[str, ...], Callable[[TrialSpec], list[Fault]]]


def cross_checks(*, data: bool) -> list[Checked]:
    """Return the checks between settings that are right one by one, each with the settings that it reads.

    With `data`, the data set's files are looked at, and the attack is checked on the labels in them.
    """
    checks: list[Checked] = [(("dataset", "data_root"), data_faults)] if data else []
    checks.append((("dataset", "data_root", "attack"), lambda spec: attack_faults(spec, data=data)))
    checks.append((("dataset", "data_root", "attack", "model"), lambda spec: model_faults(spec, data=data)))
    checks.append((("attack", "seed", "data_seed"), seed_faults))
    checks.append((("dataset", "defense"), defense_faults))
    if data:
        checks.append((("dataset", "data_root", "defense", "model"), network_faults))
    checks.append((("dataset", "attack", "defense", "model", "holdout"), offer_faults))
    return checks


def data_faults(spec: TrialSpec) -> list[Fault]:
    """Return what keeps the data set from being read: it is not there, or not what its name promises."""
    return [fault_of(problem) for problem in spec.dataset.check(spec.data_root)]


def attack_faults(spec: TrialSpec, *, data: bool) -> list[Fault]:
    """Return why the attack cannot be made on the data set; with `data`, its labels and image size."""
    if spec.attack is None:
        return []
    shape, faults = image_shape(spec) if data else (None, [])
    if faults:
        return faults
    labels = spec.dataset.labels("train", spec.data_root) if shape else None
    found = spec.attack.check(spec.dataset.num_classes, labels, shape)
    return [fault_of(problem).under("attack") for problem in found]


def image_shape(spec: TrialSpec) -> tuple[tuple[int, int, int] | None, list[Fault]]:
    """Return (H, W, C) of the data set's images, or None where it is missing, and why it cannot be told."""
    if spec.dataset.check(spec.data_root):  # `data_faults` says so
        return None, []
    try:
        return spec.dataset.image_shape(spec.data_root), []
    except DataError as error:
        return None, [fault_of(problem) for problem in error.problems]


def defense_faults(spec: TrialSpec) -> list[Fault]:
    """Return why the defense cannot be used on the data set."""
    return [fault_of(p).under("defense") for p in spec.defense.check(spec.dataset.num_classes)]


def network_faults(spec: TrialSpec) -> list[Fault]:
    """Return why a network, the trial's or one of the defense's own, cannot be built for the images."""
    from bdtune.plugins.model import networks_of

    shape, faults = image_shape(spec)
    if shape is None:
        return faults
    networks = [("model", spec.model), *networks_of(spec.defense, "defense")]
    return [fault_of(problem).under(path) for path, model in networks for problem in model.check(shape)]


def model_faults(spec: TrialSpec, *, data: bool) -> list[Fault]:
    """Return why the attack cannot be made with the network; with `data`, also on the test set."""
    if spec.attack is None:
        return []

    def test_labels() -> np.ndarray | None:
        present = data and not spec.dataset.check(spec.data_root)
        return spec.dataset.labels("test", spec.data_root) if present else None

    found = spec.attack.check_trial(spec.model, spec.dataset, test_labels)
    return [fault_of(problem) for problem in found]


def seed_faults(spec: TrialSpec) -> list[Fault]:
    """Return why the attack cannot make its poison plan from its seed; the path is where that was given."""
    if spec.attack is None:
        return []
    path = "seed" if spec.data_seed is None else "data_seed"
    path = path if spec.attack.seed is None else "attack.seed"
    try:
        spec.attack.plan_seed(spec.attack.attacker_seed(spec.seed_of_data))
    except ConfigError as error:
        return [replace(fault_of(problem), path=path) for problem in error.problems]
    return []


def offer_faults(spec: TrialSpec) -> list[Fault]:
    """Return what the defense needs that the trial does not give."""
    offer = Offer(
        num_classes=spec.dataset.num_classes,
        model=spec.model,
        holdout=spec.holdout,
        backdoored=spec.attack is not None and spec.attack.hands_over,
    )
    return [fault_of(problem) for problem in spec.defense.check_offer(offer)]


def fault_of(problem: Problem) -> Fault:
    """Turn a plugin's problem into a fault; the place it names becomes part of what was got."""
    starts = problem.expected.startswith("expected")
    expected = problem.expected if starts else f"expected {problem.expected}"
    place = f" in {problem.where}" if problem.where else ""
    return Fault(problem.path, expected, problem.got + place, problem.hint)


def section_params(key: str, value: Any) -> dict[str, Scalar]:
    """Return one setting's knobs by dotted path; lists as JSON text, a plugin's own path is its name."""
    if key in PLUGIN_KINDS:
        params: dict[str, Scalar] = {key: "none" if value is None else value.plugin_name()}
        return (
            params
            if value is None
            else {**params, **_flat(f"{key}.", value.model_dump(mode="json", by_alias=True))}
        )
    if isinstance(value, Knobs):
        return _flat(f"{key}.", value.model_dump(mode="json", by_alias=True))
    return {key: str(value) if isinstance(value, Path) else value}


def to_params(spec: TrialSpec) -> dict[str, Scalar]:
    """Return every knob by its dotted path, flat; `data_root` is left out, as it belongs to a machine."""
    params: dict[str, Scalar] = {}
    for key in TRIAL_KEYS:
        if key != "data_root":
            params |= section_params(key, getattr(spec, key))
    return params


def trial_id(spec: TrialSpec) -> str:
    """Return 16 hex digits that say which trial this is: of all knobs that can change the result.

    A trial without a `data_seed` has the id that it had before there was one.
    """
    left_out = spec.no_effect | ({"data_seed"} if spec.data_seed is None else set())
    return key_of({key: section_key(getattr(spec, key)) for key in TRIAL_KEYS if key not in left_out})


def section_key(value: Any) -> str:
    """Return a hash of one setting's identity."""
    return _knobs_key(value) if isinstance(value, Knobs) else canonical_json(value)


@lru_cache(maxsize=4096)
def _knobs_key(value: Knobs) -> str:
    return key_of(value.identity())


def spec_to_dict(spec: TrialSpec) -> dict[str, Any]:
    """Return the trial as JSON-able values, every knob written out; `spec_from_dict` reads it."""
    result: dict[str, Any] = {}
    for key in TRIAL_KEYS:
        value = getattr(spec, key)
        if isinstance(value, Plugin):
            result[key] = {"name": value.plugin_name(), **value.model_dump(mode="json", by_alias=True)}
        elif isinstance(value, Knobs):
            result[key] = value.model_dump(mode="json", by_alias=True)
        else:
            result[key] = str(value) if isinstance(value, Path) else value
    return result


def spec_from_dict(raw: Mapping[str, Any]) -> TrialSpec:
    """Read what `spec_to_dict` wrote; raises `ConfigError` with all problems."""
    spec, faults = parse_trial(raw, check_data=False)
    if spec is None:
        raise ConfigError([Problem(f.path, f.expected, f.got, hint=f.hint) for f in faults])
    return spec


def _absent(key: str) -> Any:
    if key in DEFAULT_PLUGINS:
        return DEFAULT_PLUGINS[key]
    if key == "data_root":
        return os.environ.get("BDTUNE_DATA") or None
    default = TrialSpec.model_fields[key].default
    return default.model_dump(mode="json", by_alias=True) if isinstance(default, Knobs) else default


def _parse_plugin(key: str, raw: Any) -> tuple[Plugin | None, list[Fault]]:
    if key == "attack" and raw in (None, "none", {"name": "none"}):
        return None, []
    mapping = {"name": raw} if isinstance(raw, str) else raw
    example = f"a name, or a mapping such as {{name: {DEFAULT_PLUGINS[key] or 'badnets'}, ...}}"
    if not isinstance(mapping, dict):
        return None, [Fault("", f"expected {example}", show(raw))]
    named, faults = _named(key, mapping, example)
    if named is None:
        return None, faults
    name, preset = named
    try:
        cls = registry.load(PLUGIN_KINDS[key], name)
    except ConfigError as error:
        path = "name" if isinstance(raw, dict) else ""
        hint = f"A preset is written as {{preset: {name}}}" if key == "attack" and "/" in name else ""
        return None, [Fault(path, p.expected, p.got, hint or p.hint) for p in error.problems]
    knobs = {k: v for k, v in mapping.items() if k not in ("name", "preset")}
    plugin, faults = check(cls, with_knobs(preset, knobs), name)
    if key != "attack":
        return plugin, faults
    if plugin is not None:
        faults = [fault_of(problem) for problem in plugin.check_files()]
    return plugin, [_with_owner(fault, cls) for fault in faults]


def _with_owner(fault: Fault, attack: type[Attack]) -> Fault:
    """Return the fault of an unknown knob with the reason why there is none, or the attacks that have it."""
    if fault.about_key and fault.path in attack.lacks:
        return replace(fault, hint=attack.lacks[fault.path])
    if not fault.about_key or fault.hint:
        return fault
    names = registry.names("attacks")
    owners = [name for name in names if fault.path in registry.load("attacks", name).model_fields]
    if not 0 < len(owners) <= 3:
        return fault
    return replace(fault, hint=f"It is a knob of {' and '.join(owners)}")


_Named = tuple[str, dict[str, Any]]


def _named(key: str, mapping: dict[str, Any], example: str) -> tuple[_Named | None, list[Fault]]:
    """Return the plugin's name and the knobs of its preset."""
    name, preset = mapping.get("name"), mapping.get("preset")
    for word, value in (("name", name), ("preset", preset)):
        if value is not None and not isinstance(value, str):
            return None, [Fault(word, "expected text", show(value))]
    if key == "attack" and name == "none":
        expected = "expected an attack beside its knobs, as in 'attack=badnets'"
        return None, [Fault(knob, expected, "none") for knob in mapping if knob != "name"]
    if preset is None or key != "attack":
        return ((name, {}), []) if name else (None, [Fault("", f"expected {example}", show(mapping))])
    from bdtune.plugins.presets import preset as find

    try:
        owner, knobs = find(preset)
    except ConfigError as error:
        return None, [Fault("preset", p.expected, p.got, p.hint) for p in error.problems]
    if name not in (None, owner):
        return None, [Fault("name", f"expected '{owner}', whose preset '{preset}' is", show(name))]
    return (owner, knobs), []


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Scalar]:
    flat: dict[str, Scalar] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            inner = dict(value)
            if "name" in inner:  # a network inside a defense, written as one of its own would be
                flat[prefix + name] = inner.pop("name")
            flat |= _flat(f"{prefix}{name}.", inner)
        else:
            flat[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return flat


__all__ = ["TrialSpec", "parse_trial", "spec_from_dict", "spec_to_dict", "to_params", "trial_id"]

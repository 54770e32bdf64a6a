"""One trial: a data set, an attack, a defense, a model and a seed, with every knob fixed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from bdtune.checking import check, check_each
from bdtune.config.attack_field import AttackField
from bdtune.effects import NoEffect, no_effect
from bdtune.engine.key import canonical_json, canonical_object, key_of, key_of_text
from bdtune.engine.numerics import Numerics
from bdtune.errors import ConfigError, DataError, Problem
from bdtune.knobs import Knobs, UserFile
from bdtune.plugins.defense import Offer
from bdtune.plugins.field import PluginField, plain
from bdtune.poisoning.reserve import CleanSize, Reserve
from bdtune.training.evaluate import Evaluate
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.defense import Defense
    from bdtune.plugins.model import Model
else:  # the fields are read by the registry
    Attack = Dataset = Defense = Model = Any

Scalar = str | int | float | bool | None


def _data_root() -> Any:
    """Return the folder that the environment names, as text like one in a file."""
    return os.environ.get("BDTUNE_DATA") or None


class TrialSpec(Knobs):
    """A trial with all knobs fixed. Trials of one `trial_id` give equal results."""

    dataset: Annotated[Dataset, PluginField("datasets", "digits")] = "digits"  # type: ignore[assignment]
    """Where images come from; by default a set that needs no files."""
    attack: Annotated[Attack | None, AttackField("attacks", "badnets")] = None
    """What poisons them; none for a clean run."""
    defense: Annotated[Defense, PluginField("defenses", "none")] = "none"  # type: ignore[assignment]
    """What makes a classifier of the poisoned set; "none" trains on it as it is."""
    model: Annotated[Model, PluginField("models", "resnet18")] = "resnet18"  # type: ignore[assignment]
    """The network."""
    seed: int = Field(0, ge=0)
    """Seed of every training and, unless `data_seed` is given, of the poisoned set."""
    data_seed: int | None = Field(None, ge=0)
    """Seed of what is held out and, unless `attack.seed` is given, of the poison plan; none: `seed`."""
    clean: CleanSize = 0.0
    """Images known to be clean, for defenses that ask for them: a share, a count, or "10 per class"."""
    holdout: float = Field(0.0, ge=0, lt=1)
    """Fraction of the training set that is held out, with observed labels, to choose settings honestly."""
    holdout_clean: CleanSize = 0.0
    """Images known to be clean that are held out to choose settings honestly; sizes as of `clean`."""
    evaluation: Evaluate = Evaluate()
    """What is measured of the classifier, of its baseline's as well."""
    baseline: Supervised | None = None
    """Training of the undefended model, for all defenses alike; null: as each defense's own."""
    numerics: Numerics = Numerics()
    """Device and precision."""
    data_root: Annotated[UserFile, NoEffect] = Field(default_factory=_data_root)
    """Folder that holds the data sets; by default the variable BDTUNE_DATA."""
    pipeline: Literal["auto", "resident", "stream"] = "auto"
    """resident: all images in memory; stream: in blocks, so in another order; auto: resident if it fits."""

    @property
    def seed_of_data(self) -> int:
        """The seed that the poisoned set is made by."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def reserve(self) -> Reserve:
        """What is taken out of the training set before anything is poisoned."""
        return Reserve(clean=self.clean, select_clean=self.holdout_clean)


TRIAL_KEYS = tuple(TrialSpec.model_fields)
IDENTIFYING = tuple(key for key in TRIAL_KEYS if key not in no_effect(TrialSpec))
"""The settings that can change a result."""
PLUGIN_KINDS = {"dataset": "datasets", "attack": "attacks", "defense": "defenses", "model": "models"}
"""The settings that are plugins, written as a name or as a mapping with a name and knobs."""


def parse_trial(raw: Mapping[str, Any], *, check_data: bool = True) -> tuple[TrialSpec | None, list[Problem]]:
    """Read a trial's settings; returns all that is wrong with them, by dotted path, when there is no spec."""
    sections, problems = parse_sections(raw)
    spec = build(sections)
    for keys, problems_of in cross_checks(data=check_data):
        if all(key in sections for key in keys):
            problems += problems_of(spec)
    return (None if problems else spec), problems


def parse_sections(raw: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Read each setting by itself; those that are wrong are missing from the result."""
    return check_each(TrialSpec, dict(raw), "the trial")


def parse_section(key: str, raw: Any) -> tuple[Any, list[Problem]]:
    """Read one setting of a trial; the problems' paths start with its key."""
    found, problems = check(TrialSpec, {key: raw}, "the trial")
    return (None if found is None else getattr(found, key)), problems


def sections_of(spec: TrialSpec) -> dict[str, Any]:
    """Return a trial's settings by name."""
    return {key: getattr(spec, key) for key in TRIAL_KEYS}


_GIVEN = set(TRIAL_KEYS)
"""What pydantic notes as given of each trial that is put together: one set for all of them."""


def build(sections: Mapping[str, Any]) -> TrialSpec:
    """Put checked settings together, without checking them again; a spec of some only is for checks."""
    return TrialSpec.model_construct(_GIVEN, **sections)


Checked = tuple[tuple[str, ...], Callable[[TrialSpec], list[Problem]]]


def cross_checks(*, data: bool) -> list[Checked]:
    """Return the checks between settings that are right one by one, each with the settings that it reads.

    With `data`, the data set's files are looked at, and the attack is checked on the labels in them.
    """
    files: list[Checked] = [
        (("dataset", "data_root"), lambda spec: spec.dataset.check(spec.data_root)),
        (("dataset", "data_root", "defense", "model"), network_problems),
    ]
    reserved = ("clean", "holdout_clean", "seed", "data_seed")
    files += [(("dataset", "data_root", "clean", "holdout_clean"), reserve_problems)]
    return [
        *(files if data else ()),
        (("dataset", "data_root", "attack", *reserved), lambda spec: attack_problems(spec, data=data)),
        (("dataset", "data_root", "attack", "model"), lambda spec: model_problems(spec, data=data)),
        (("attack", "seed", "data_seed"), seed_problems),
        (("dataset", "defense"), defense_problems),
        (
            ("dataset", "data_root", "attack", "defense", "model", "clean", "holdout"),
            lambda spec: offer_problems(spec, data=data),
        ),
    ]


def attack_problems(spec: TrialSpec, *, data: bool) -> list[Problem]:
    """Return why the attack cannot be made on the data set; with `data`, its labels and image size."""
    if spec.attack is None:
        return []
    shape, problems = image_shape(spec) if data else (None, [])
    if problems:
        return problems
    labels = spec.dataset.labels("train", spec.data_root) if shape else None
    if labels is not None and spec.reserve:
        labels = labels[spec.reserve.parts(labels, spec.seed_of_data).rest]
    found = spec.attack.check(spec.dataset.num_classes, labels, shape)
    return [problem.under("attack") for problem in found]


def image_shape(spec: TrialSpec) -> tuple[tuple[int, int, int] | None, list[Problem]]:
    """Return (H, W, C) of the data set's images, or None where it is missing, and why it is not known."""
    if spec.dataset.check(spec.data_root):  # reported by itself
        return None, []
    try:
        return spec.dataset.image_shape(spec.data_root), []
    except DataError as error:
        return None, list(error.problems)


def reserve_problems(spec: TrialSpec) -> list[Problem]:
    """Return why so many images cannot be taken out of the training set."""
    if not spec.reserve or spec.dataset.check(spec.data_root):
        return []
    short = spec.reserve.shortage(spec.dataset.labels("train", spec.data_root))
    path = "clean" if spec.clean else "holdout_clean"
    return [Problem(path, "expected fewer images than each class has", short)] if short else []


def defense_problems(spec: TrialSpec) -> list[Problem]:
    """Return why the defense cannot be used on the data set."""
    return [p.under("defense") for p in spec.defense.check(spec.dataset.num_classes)]


def network_problems(spec: TrialSpec) -> list[Problem]:
    """Return why a network, the trial's or one of the defense's own, cannot be built for the images."""
    from bdtune.plugins.model import networks_of

    shape, problems = image_shape(spec)
    if shape is None:
        return problems
    networks = [("model", spec.model), *networks_of(spec.defense, "defense")]
    return [problem.under(path) for path, model in networks for problem in model.check(shape)]


def model_problems(spec: TrialSpec, *, data: bool) -> list[Problem]:
    """Return why the attack cannot be made with the network; with `data`, also on the test set."""
    if spec.attack is None:
        return []

    def test_labels() -> np.ndarray | None:
        present = data and not spec.dataset.check(spec.data_root)
        return spec.dataset.labels("test", spec.data_root) if present else None

    return spec.attack.check_trial(spec.model, spec.dataset, test_labels)


def seed_problems(spec: TrialSpec) -> list[Problem]:
    """Return why the attack cannot make its poison plan from its seed; the path is where that was given."""
    if spec.attack is None:
        return []
    path = "seed" if spec.data_seed is None else "data_seed"
    path = path if spec.attack.seed is None else "attack.seed"
    try:
        spec.attack.plan_seed(spec.attack.attacker_seed(spec.seed_of_data))
    except ConfigError as error:
        return [replace(problem, path=path) for problem in error.problems]
    return []


def offer_problems(spec: TrialSpec, *, data: bool) -> list[Problem]:
    """Return what the defense needs that the trial does not give; with `data`, also whether it is enough."""
    labels = None
    if data and spec.clean and not spec.dataset.check(spec.data_root):
        labels = spec.dataset.labels("train", spec.data_root)
    offer = Offer(
        num_classes=spec.dataset.num_classes,
        model=spec.model,
        holdout=spec.holdout,
        backdoored=spec.attack is not None and spec.attack.hands_over,
        clean=bool(spec.clean),
        clean_images=None if labels is None else spec.reserve.clean_images(labels),
    )
    return spec.defense.check_offer(offer)


def section_params(key: str, value: Any) -> dict[str, Scalar]:
    """Return one setting's knobs by dotted path; lists as JSON text, a plugin's own path is its name."""
    return _flat("", {key: "none" if key in PLUGIN_KINDS and value is None else plain(value)})


def to_params(
    spec: TrialSpec, params_of: Callable[[str, Any], Mapping[str, Scalar]] = section_params
) -> dict[str, Scalar]:
    """Return every knob by its dotted path, flat; `data_root` is left out, as it belongs to a machine.

    `params_of`: `section_params`, or what returns the same of many trials without working it out each time.
    """
    sections = [params_of(key, value) for key, value in sections_of(spec).items() if key != "data_root"]
    return {path: value for section in sections for path, value in section.items()}


def section_key(value: Any) -> str:
    """Return a hash of one setting's identity."""
    return _knobs_key(value) if isinstance(value, Knobs) else canonical_json(value)


def section_text(value: Any) -> str:
    """Return that hash as canonical JSON, as it enters a trial's id."""
    return canonical_json(section_key(value))


def trial_id(spec: TrialSpec, text_of: Callable[[Any], str] = section_text) -> str:
    """Return 16 hex digits that say which trial this is: of all knobs that can change the result.

    `text_of`: `section_text`, or what returns the same of many trials without working it out each time.
    """
    texts = {key: text_of(getattr(spec, key)) for key in IDENTIFYING}
    if spec.baseline is None:
        del texts["baseline"]  # a trial without it is the one that it was before there was such a setting
    return key_of_text(canonical_object(texts))


@lru_cache(maxsize=4096)
def _knobs_key(value: Knobs) -> str:
    return key_of(value.identity())


def spec_to_dict(spec: TrialSpec) -> dict[str, Any]:
    """Return the trial as JSON-able values, every knob written out; `spec_from_dict` reads it."""
    return spec.model_dump(mode="json", by_alias=True)


def spec_from_dict(raw: Mapping[str, Any]) -> TrialSpec:
    """Read what `spec_to_dict` wrote; raises `ConfigError` with all problems."""
    spec, problems = parse_trial(raw, check_data=False)
    if spec is None:
        raise ConfigError(problems)
    return spec


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

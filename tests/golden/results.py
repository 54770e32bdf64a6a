"""What stages, stamps and networks give on tiny fixed inputs, beside the `version` that keys know them by.

Trainings give other last bits on another machine, so of them the digest of the code that computes is kept.
To accept what they give now: python -m tests.golden.results
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.engine.stage import Stage
from bdtune.plugins import registry
from bdtune.plugins.defense import Defense, Diagnose
from tests.golden import attacks, models, stages
from tests.golden.code import code_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GOLDEN = Path(__file__).with_name("results.json")
BLESS = "python -m tests.golden.results"
ROOMS = ("plugins", "training", "poisoning", "attacks", "defenses")

Entry = dict[str, Any]
"""`version`, and `gives`, a digest; of networks also `numbers`, which are compared as numbers."""


def digest(arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> str:
    """Return a digest of a result in which floats count to ten digits (float32: five).

    Processors differ in the last bits of exp and log.
    """
    sha = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        sha.update(_text(array).encode() if array.dtype.kind == "f" else array.tobytes())
    sha.update(json.dumps({name: _rounded(value) for name, value in sorted(info.items())}).encode())
    return sha.hexdigest()[:16]


def _text(array: np.ndarray) -> str:
    digits = 10 if array.dtype == np.float64 else 5
    return " ".join(f"{value:.{digits}g}" for value in array.ravel().tolist())


def _rounded(value: object) -> object:
    return f"{value:.10g}" if isinstance(value, float) else value


@cache
def listed() -> list[type[Stage]]:
    """Return every stage of the package that nodes are made of."""
    for room in ROOMS:
        for found in pkgutil.walk_packages(
            importlib.import_module(f"bdtune.{room}").__path__, f"bdtune.{room}."
        ):
            importlib.import_module(found.name)
    named = {cls for cls in _below(Stage) if cls.__module__.startswith("bdtune.") and "name" in vars(cls)}
    return sorted(named, key=lambda cls: cls.full_name())


def _below(cls: type[Stage]) -> list[type[Stage]]:
    return [found for child in cls.__subclasses__() for found in (child, *_below(child))]


def plugins(kind: str) -> dict[str, type[Any]]:
    """Return the package's own plugins of a kind by name; those of tests are elsewhere."""
    found = {name: registry.load(kind, name) for name in registry.names(kind)}
    return {name: cls for name, cls in found.items() if cls.__module__.startswith("bdtune.")}


def derived() -> list[type[Stage]]:
    """Return the derived stages that need a case of their own; diagnoses are looked at defense by defense."""
    return [cls for cls in listed() if cls.kind == "derive" and cls is not Diagnose]


def judged() -> dict[str, type[Any]]:
    """Return the defenses that have a diagnosis."""
    return {name: cls for name, cls in plugins("defenses").items() if cls.diagnose is not Defense.diagnose}


def expected() -> dict[str, type[Any]]:
    """Return the classes that need an entry, by its name."""
    return {
        **{f"stage {cls.full_name()}": cls for cls in derived()},
        **{f"training {cls.full_name()}": cls for cls in listed() if cls.kind == "train"},
        **{f"diagnosis {name}": cls for name, cls in judged().items()},
        **{f"attack {name}": cls for name, cls in plugins("attacks").items()},
        **{f"model {name}": cls for name, cls in plugins("models").items()},
    }


def _stage(cls: type[Stage]) -> Entry:
    digests = [
        digest(made.arrays, made.info)
        for stage, inputs in stages.cases()
        if type(stage) is cls
        for made in [stages.run(stage, **inputs)]
    ]
    if not digests:
        raise LookupError(f"no case of {cls.full_name()}: add one to tests/golden/stages.py, then `{BLESS}`")
    return {"gives": _joined(digests)}


def _diagnosis(cls: type[Defense]) -> Entry:
    found = stages.diagnoses().get(cls.plugin_name())
    if found is None:
        raise LookupError(
            f"no evidence for {cls.plugin_name()}: add it to tests/golden/stages.py, then `{BLESS}`"
        )
    return {"gives": digest(found.arrays, found.info)}


def _attack(cls: type[Any]) -> Entry:
    return {"gives": _joined(digest(attacks.made(each), {}) for each in attacks.cases(cls.plugin_name()))}


def _model(cls: type[Any]) -> Entry:
    return {"gives": models.parts(cls.plugin_name()), "numbers": models.numbers(cls.plugin_name())}


def _training(cls: type[Stage]) -> Entry:
    return {"gives": code_digest(cls)}


def _joined(digests: Any) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]


MEASURED: dict[str, Callable[[type[Any]], Entry]] = {
    "stage": _stage,
    "training": _training,
    "diagnosis": _diagnosis,
    "attack": _attack,
    "model": _model,
}


def measured(name: str) -> Entry:
    """Return the entry of a name as it is now; raises `LookupError` where there is no input to try it on."""
    cls = expected()[name]
    return {"version": cls.version, **MEASURED[name.partition(" ")[0]](cls)}


def agree(now: Entry, then: Entry) -> bool:
    """Return whether two entries are equal, numbers up to a thousandth."""
    one, other = now.get("numbers", []), then.get("numbers", [])
    rest = [{name: value for name, value in entry.items() if name != "numbers"} for entry in (now, then)]
    return rest[0] == rest[1] and len(one) == len(other) and np.allclose(one, other, rtol=1e-3, atol=1e-4)


def blessed() -> dict[str, Entry]:
    """Return the entries that were accepted."""
    return json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


def bless() -> list[str]:
    """Accept what there is now and return the names that changed; entries that agree stay as they are."""
    before, after = blessed(), {}
    for name in sorted(expected()):
        now = measured(name)
        after[name] = before[name] if name in before and agree(now, before[name]) else now
    lines = [f" {json.dumps(name)}: {json.dumps(entry, sort_keys=True)}" for name, entry in after.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return sorted(name for name in before | after if before.get(name) != after.get(name))


if __name__ == "__main__":
    print(f"changed: {', '.join(bless()) or 'none'}")

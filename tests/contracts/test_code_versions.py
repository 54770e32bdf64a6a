"""A change of code that can change results needs a new `version`: keys know code by that alone.

To bless the code as it is: python -m tests.contracts.test_code_versions
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from bdtune.engine.stage import Stage
from bdtune.plugins import registry
from tests.contracts.code_digest import closure, code_digest

GOLDEN = Path(__file__).parents[1] / "golden" / "code_versions.json"
BLESS = "python -m tests.contracts.test_code_versions"


def stages() -> list[type[Stage]]:
    """Return every stage of the package, those of tests left out."""
    for package in ("plugins", "training", "poisoning", "defending", "attacks", "defenses"):
        path = importlib.import_module(f"bdtune.{package}").__path__
        for found in pkgutil.walk_packages(path, f"bdtune.{package}."):
            importlib.import_module(found.name)
    return sorted(
        {cls for cls in _below(Stage) if cls.__module__.startswith("bdtune.") and hasattr(cls, "name")},
        key=lambda cls: (cls.__module__, cls.__name__),
    )


def _below(cls: type) -> list[type]:
    return [found for child in cls.__subclasses__() for found in (child, *_below(child))]


def plugins() -> list[tuple[str, type[Any]]]:
    """Return the package's own plugins, by kind: those of tests are elsewhere."""
    found = [(kind, registry.load(kind, name)) for kind in registry.KINDS for name in registry.names(kind)]
    return [(kind, cls) for kind, cls in found if cls.__module__.startswith("bdtune.")]


def current() -> dict[str, dict[str, Any]]:
    """Return version and digest of all that has a version."""
    found = {
        f"stage {cls.name} ({cls.__module__.removeprefix('bdtune.')}.{cls.__name__})": cls for cls in stages()
    }
    found |= {f"{kind} {cls.plugin_name()}": cls for kind, cls in plugins()}
    return {name: {"version": cls.version, "code": code_digest(cls)} for name, cls in sorted(found.items())}


CURRENT = current()
BLESSED = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}


@pytest.mark.parametrize("name", sorted(CURRENT | BLESSED))
def test_code_is_as_it_was_blessed(name):
    now, then = CURRENT.get(name), BLESSED.get(name)
    if now == then:
        return
    if now is None or then is None or now["version"] != then["version"]:
        pytest.fail(f"{name} is new, gone or has a new version: bless it with `{BLESS}`")
    pytest.fail(
        f"the code of {name} changed: bump `version` of {name}, or re-bless with `{BLESS}` when the result "
        "cannot change"
    )


def test_stages_of_one_name_are_of_one_family():
    """A key knows a stage by its name: two unrelated ones of one name could be taken for each other."""
    by_name = defaultdict(list)
    for cls in stages():
        by_name[cls.name].append(cls)
    clashes = {
        name: found
        for name, found in by_name.items()
        if not any(all(issubclass(cls, base) for cls in found) for base in found)
    }
    assert not clashes


def test_the_digest_follows_helpers_and_no_further():
    from bdtune.training.flows import Flows

    used = closure([("training.flows", "Flows")])
    assert ("training.flows", "Flows") in used
    assert any(name != "training.flows" for name, _ in used)
    assert not any(name.startswith("defenses") for name, _ in used)
    assert code_digest(Flows) == code_digest(Flows)


if __name__ == "__main__":
    changed = [name for name, now in CURRENT.items() if BLESSED.get(name) != now]
    GOLDEN.write_text(json.dumps(CURRENT, indent=1, sort_keys=True) + "\n")
    print(f"blessed {len(CURRENT)}, changed: {', '.join(changed) or 'none'}")

"""The checks of all plugins outside the package; the only module here that needs pytest."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from bdtune.plugins import registry
from bdtune.source import is_own
from bdtune.testing import attacks, datasets, defenses, models
from bdtune.testing.described import check_described

if TYPE_CHECKING:
    from collections.abc import Callable

    from _pytest.mark import ParameterSet

BY_NAME = {"datasets": datasets.CHECKS, "defenses": defenses.CHECKS, "models": models.CHECKS}


def cases() -> list[ParameterSet]:
    """Return one case for each promise of each plugin outside the package."""
    found: list[tuple[str, str, Callable[[], None]]] = []
    for kind in registry.KINDS:
        for name, place in registry.places(kind).items():
            if is_own(place.module):
                continue
            found.append((name, "described", partial(check_described, kind, name)))
            for check in BY_NAME.get(kind, ()):
                found.append((name, check.__name__, partial(check, name)))
            if kind == "attacks":
                make = partial(attacks.small_attack, name, {})
                found += [(name, check.__name__, partial(check, make)) for check in attacks.CHECKS]
    return [pytest.param(check, id=f"{name}-{what.removeprefix('check_')}") for name, what, check in found]


@pytest.mark.parametrize("check", cases())
def test_plugin(check: Callable[[], None]) -> None:
    """Keep one promise of one plugin."""
    check()

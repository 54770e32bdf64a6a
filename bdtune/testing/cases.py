"""Every promise of plugins, one case each: for `bdtune check`, and for pytest."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bdtune.errors import UserError
from bdtune.plugins import registry
from bdtune.source import is_own, one_line, raised_at
from bdtune.testing import attacks, datasets, defenses, models, tables
from bdtune.testing.described import check_described

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from bdtune.plugins.registry import Place

    Check = Callable[..., str | None]

BY_NAME = {"datasets": datasets.CHECKS, "defenses": defenses.CHECKS, "models": models.CHECKS}


@dataclass(frozen=True)
class Case:
    """One promise of one plugin; `run` raises where it is broken, and may return a remark."""

    kind: str
    name: str
    promise: str
    """A sentence."""
    check: str
    """The name of the function that checks it, without "check_"."""
    run: Callable[[], str | None]


def plugins_outside() -> list[tuple[str, str]]:
    """Return kind and name of each plugin outside the package, and of those of which there are two."""
    return [
        (kind, name)
        for kind in registry.EVERY
        for name, place in registry.places(kind).items()
        if place.problem or not is_own(place.module)
    ]


def cases(plugins: Iterable[tuple[str, str]]) -> Iterator[Case]:
    """Yield the promises of plugins, given by kind and name; of one that cannot be loaded, that alone."""
    for kind, name in plugins:
        load = partial(_load, kind, name)
        try:
            load()
        except UserError:
            promise = "The file can be imported and defines the plugin."
            yield Case(kind, name, promise, "loads", load)
            continue
        for check, run in _checks(kind, name):
            promise = (check.__doc__ or "").partition("\n")[0]
            yield Case(kind, name, promise, check.__name__.removeprefix("check_"), run)


def _load(kind: str, name: str) -> None:
    if kind in registry.KINDS:
        registry.load(kind, name)
    else:
        tables.TABLES[kind].find(name)


def _checks(kind: str, name: str) -> Iterator[tuple[Check, Callable[[], str | None]]]:
    """Yield each check of a plugin, with the call that makes it."""
    if kind in registry.TABLES:
        yield tables.CHECKS[kind], partial(tables.CHECKS[kind], name)
        return
    yield check_described, partial(check_described, kind, name)
    for check in BY_NAME.get(kind, ()):
        yield check, partial(check, name)
    for promise in attacks.CHECKS if kind == "attacks" else ():
        yield promise, partial(promise, partial(attacks.small_attack, name, {}))


def explained(error: Exception, place: Place) -> str:
    """Return in one line why a promise is broken, with the line of the plugin that raised an error."""
    plain = isinstance(error, AssertionError | UserError)
    text = " ".join(str(error).split()) if plain else one_line(error)
    failed = traceback.extract_tb(error.__traceback__)[-1]
    text = text or f"not so: {failed.line}"  # a bare assert
    where = "" if isinstance(error, UserError) else raised_at(error, place.file.parent)
    notes = getattr(error, "__notes__", ())
    return " ".join(filter(None, (f"{where}:" if where else "", text, *notes)))

"""`bdtune check`: what every plugin promises, tried on one's own."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdtune.errors import Problem, UserError
from bdtune.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.status import Status

    from bdtune.testing.cases import Case


@dataclass(frozen=True)
class Verdict:
    """One promise of one plugin, and whether it is kept."""

    plugin: str
    """Kind and name, such as "attacks/frame"."""
    promise: str
    kept: bool
    found: str
    """Why not; of a promise that is kept, a remark or nothing."""


def lines(found: Sequence[Verdict]) -> Iterator[str]:
    """Yield remarks and reasons of broken promises, one a line, so that a path in it can be copied."""
    reasons: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in found:
        if verdict.found:  # what differs in shapes alone is one reason
            reasons[verdict.plugin, re.sub(r"\(.*?\)", "", verdict.found)].append(verdict)
    for first, *others in reasons.values():
        yield f"{'--' if first.kept else '!!'} {first.plugin}: {first.promise}"
        yield f"   {first.found}"
        if others:
            yield f"   {len(others)} more for this reason"


def check(path: Path | None, *, quiet: bool = False) -> list[Verdict]:
    """Check the plugins of a path, without one all that are not in the package.

    Raises `UserError` where there are none. Their folder is added to `BDTUNE_PLUGINS` for this process.
    """
    chosen = None if path is None else _chosen(path.expanduser().absolute())
    from bdtune.testing.cases import cases, plugins_outside  # loads torch

    plugins = plugins_outside() if chosen is None else chosen
    if not plugins:
        expected = "expected plugins in a PATH, in the folders of BDTUNE_PLUGINS or in installed packages"
        raise UserError(Problem("", expected, "none"))
    with _progress(quiet) as progress:
        return [_verdict(case, progress) for case in cases(plugins)]


def _chosen(path: Path) -> list[tuple[str, str]]:
    """Return kind and name of the plugins that a path means, and have the registry look there."""
    root, kinds, only = _meant(path)
    found = [(kind, name) for kind in kinds for name, _ in registry.plugin_files(root / kind)]
    found = [(kind, name) for kind, name in found if only in (None, name) and path.exists()]
    if not found:
        every = f"{', '.join(registry.EVERY[:-1])} or {registry.EVERY[-1]}"
        expected = (
            f"expected a plugin NAME.py in a folder called {every}, or a folder that holds such folders"
        )
        raise UserError(
            Problem("PATH", expected, f"{path}{'' if path.exists() else ', which does not exist'}")
        )
    listed = [folder for folder in os.environ.get("BDTUNE_PLUGINS", "").split(os.pathsep) if folder]
    if root not in [Path(folder).absolute() for folder in listed]:
        os.environ["BDTUNE_PLUGINS"] = os.pathsep.join([str(root), *listed])
    return found


def _meant(path: Path) -> tuple[Path, Sequence[str], str | None]:
    """Return the folder for `BDTUNE_PLUGINS` that a path means, its kinds, and a single plugin's name."""
    if path.name == "__init__.py":
        path = path.parent
    if path.name in registry.EVERY:
        return path.parent, [path.name], None
    if path.parent.name in registry.EVERY:
        return path.parents[1], [path.parent.name], path.stem
    return path, registry.EVERY, None


def _verdict(case: Case, progress: Status | None) -> Verdict:
    from bdtune.testing.cases import explained

    plugin = f"{case.kind}/{case.name}"
    if progress is not None:
        progress.update(f"{plugin}: {case.check.replace('_', ' ')}")
    try:
        remark = case.run()
    except Exception as error:  # a plugin may raise anything
        reason = explained(error, registry.places(case.kind)[case.name])
        return Verdict(plugin, case.promise, False, reason)
    return Verdict(plugin, case.promise, True, remark or "")


def _progress(quiet: bool) -> Any:
    """Return a line on standard error that says what is checked; none where nobody looks."""
    from rich.console import Console

    console = Console(stderr=True)
    return nullcontext() if quiet or not console.is_terminal else console.status("")

"""Checks of a table's layout: settings that trials have, each in one place, and metrics that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.checking import show
from bdtune.config.search import known_path
from bdtune.config.trial import PLUGIN_KINDS, section_params
from bdtune.errors import nearest
from bdtune.plugins.metric import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.config.document import Document
    from bdtune.config.sweep import TableLayout
    from bdtune.config.trial import TrialSpec


def check_layout(document: Document, layout: TableLayout, trials: Sequence[TrialSpec]) -> None:
    """Report what is wrong with a layout; without trials, as of a search, only heads of paths are checked."""
    places: dict[str, str] = {}
    for part, paths in (("rows", layout.rows), ("columns", layout.columns)):
        for number, path in enumerate(paths):
            at = f"table.{part}[{number}]"
            if path in places:
                document.wrong(at, "expected each setting in one place", f"'{path}' in {places[path]} too")
            elif path == "seed":
                document.wrong(at, "expected a setting over which cells are not averaged", "'seed'")
            elif known_path(document, at, path) and trials:
                _check_setting(document, at, path, trials)
            places.setdefault(path, f"table.{part}")
    for number, metric in enumerate(layout.cells):
        if metric not in METRICS.names and "/" not in metric:
            expected = f"expected one of the metrics: {', '.join(METRICS.names)}"
            hint = nearest(metric, METRICS.names)
            document.wrong(f"table.cells[{number}]", expected, show(metric), hint)


def _check_setting(document: Document, at: str, path: str, trials: Sequence[TrialSpec]) -> None:
    """Report a path that no trial has; one whose plugin the command line replaced is left out later."""
    head = path.partition(".")[0]
    if path in PLUGIN_KINDS or any(given.partition(".")[0] == head for given in document.overridden):
        return
    sections = {id(value): value for trial in trials if (value := getattr(trial, head)) is not None}
    names = dict.fromkeys(name for value in sections.values() for name in section_params(head, value))
    if path not in names:
        expected = "expected a setting that some trial of the sweep has"
        document.wrong(at, expected, show(path), nearest(path, names))

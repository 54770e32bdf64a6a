"""Checks of a table's layout: settings that trials have, each in one place, and metrics that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.checking import show, unknown
from bdtune.config.trial import PLUGIN_KINDS, TRIAL_KEYS, section_params
from bdtune.errors import Problem, nearest
from bdtune.plugins.metric import METRICS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from bdtune.config.sweep import TableLayout
    from bdtune.config.trial import TrialSpec


def layout_problems(
    layout: TableLayout, at: str, trials: Sequence[TrialSpec], overridden: Collection[str] = ()
) -> Iterator[Problem]:
    """Yield what is wrong with a layout that stands at the dotted path `at`.

    Without trials, as of a search, only heads of paths are checked. Settings of a section that the command
    line has `overridden` may have none: they are left out later.
    """
    heads = {path.partition(".")[0] for path in overridden}
    places: dict[str, str] = {}
    for part, paths in (("rows", layout.rows), ("columns", layout.columns)):
        for number, path in enumerate(paths):
            here, head = f"{at}.{part}[{number}]", path.partition(".")[0]
            if path in places:
                yield Problem(here, "expected each setting in one place", f"'{path}' in {places[path]} too")
            elif path == "seed":
                yield Problem(here, "expected a setting over which cells are not averaged", "'seed'")
            elif head not in TRIAL_KEYS:
                yield _no_setting(f"{here}.{path}", head)
            elif trials and path not in PLUGIN_KINDS and head not in heads:
                yield from _not_a_setting_of(trials, here, path)
            places.setdefault(path, f"{at}.{part}")
    for number, metric in enumerate(layout.cells):
        if metric not in METRICS.names and "/" not in metric:
            expected = f"expected one of the metrics: {', '.join(METRICS.names)}"
            hint = nearest(metric, METRICS.names)
            yield Problem(f"{at}.cells[{number}]", expected, show(metric), hint=hint)


def _no_setting(here: str, head: str) -> Problem:
    problem = unknown(head, "", TRIAL_KEYS, "a setting of the trial")
    hint = "Leave out 'trial.'" if head == "trial" else problem.hint
    return Problem(here, problem.expected, show(head), hint=hint)


def _not_a_setting_of(trials: Sequence[TrialSpec], here: str, path: str) -> Iterator[Problem]:
    """Yield a problem if no trial has a setting."""
    head = path.partition(".")[0]
    sections = {id(value): value for trial in trials if (value := getattr(trial, head)) is not None}
    names = dict.fromkeys(name for value in sections.values() for name in section_params(head, value))
    if path not in names:
        yield Problem(here, "expected a setting that some trial has", show(path), hint=nearest(path, names))

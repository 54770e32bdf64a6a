"""Seconds of a trial's stages as metrics, so that published ones can stand beside them.

`seconds/simclr+features` is what these stages of a trial cost, by their roles; `seconds/defense` what all
stages of its defense cost, without those of the attack and of the evaluation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bdtune.trials.chain import TAKEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bdtune.config.sweep import Published
    from bdtune.trials.results import SweepResult, TrialResult

PREFIX = "seconds/"
WHOLE = "defense"


def with_seconds(result: SweepResult, paper: Iterable[Published]) -> SweepResult:
    """Return a sweep's result whose finished trials have the seconds that published numbers ask for.

    Seconds are those of the machine that computed a stage, whichever trial it was computed for.
    """
    wanted = {name for number in paper for name in number.metrics if name.startswith(PREFIX)}
    if not wanted:
        return result
    return replace(result, trials=tuple(_timed(trial, sorted(wanted)) for trial in result.trials))


def _timed(trial: TrialResult, wanted: Sequence[str]) -> TrialResult:
    found = {}
    for name in wanted:
        roles = _roles(trial, name.removeprefix(PREFIX))
        if trial.status == "done" and roles and all(role in trial.stages for role in roles):
            found[name] = sum(trial.stages[role].seconds for role in roles)
    return replace(trial, metrics={**trial.metrics, **found})


def _roles(trial: TrialResult, which: str) -> list[str]:
    """Return the roles of the stages that a metric adds up."""
    if which != WHOLE:
        return which.split("+")
    return [role for role in trial.stages if role not in TAKEN and not role.startswith("attack.")]

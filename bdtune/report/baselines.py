"""The undefended rows of a table: which settings each is compared with, and one row for many of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bdtune.report.groups import Group, Stat
from bdtune.report.selection import given

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.trials.results import Scalar

MOST = 3
"""More baselines of one attack share a row: a search of a learning rate has one for each trial."""


class Baselines(Group):
    """Undefended models of several trainings, in one row."""

    def stat(self, metric: str) -> Stat | None:
        """Return the mean without a spread: it would be one over trainings, not over seeds."""
        stat = super().stat(metric)
        return replace(stat, std=None) if stat else None

    @property
    def epochs(self) -> int | None:
        """Their budget of epochs; None where they have different ones."""
        found = {trial.epochs for trial in self.trials}
        return found.pop() if len(found) == 1 else None

    @property
    def attack_took(self) -> bool:
        """Whether the attack took in any of them; a setting's own row says it of its baseline."""
        return any(Group(trial.params, (trial,), is_baseline=True).attack_took for trial in self.trials)

    @property
    def trainings(self) -> int:
        """How many settings they have."""
        return len({str({**trial.params, "seed": None}) for trial in self.trials})


def together(block: Sequence[Group]) -> list[Group]:
    """Return a block of rows with one undefended row where it has more than `MOST`."""
    baselines = [group for group in block if group.is_baseline]
    if len(baselines) <= MOST:
        return list(block)
    params = baselines[0].params.items()
    shared = {k: v for k, v in params if all(k in b.params and b.params[k] == v for b in baselines)}
    trials = tuple(trial for group in baselines for trial in group.trials)
    return [Baselines(shared, trials, is_baseline=True), *(g for g in block if not g.is_baseline)]


def compared(baseline: Group, groups: Sequence[Group]) -> list[Group]:
    """Return the settings that are compared with a baseline."""
    ids = {trial.id for trial in baseline.trials}
    return [group for group in groups if any(trial.baseline_id in ids for trial in group.trials)]


def whose(baseline: Group, groups: Sequence[Group]) -> str:
    """Return "undefended", and how many trainings it stands for, or for which defenses if not for all."""
    if isinstance(baseline, Baselines):
        return f"undefended, {baseline.trainings} trainings"
    own = {_defense(group) for group in compared(baseline, groups)}
    every = {_defense(group) for group in groups if not group.is_baseline}
    return f"undefended, for {', '.join(sorted(own))}" if own and own != every else "undefended"


def value_of(axis: str, baseline: Group, groups: Sequence[Group]) -> Scalar:
    """Return the value of a knob that tells a baseline's settings from those of others; None without one."""
    case = given(baseline.params)
    peers = [group for group in groups if group.is_baseline and given(group.params) == case]
    values = [{group.params.get(axis) for group in compared(peer, groups)} for peer in peers]
    apart = all(len(each) == 1 for each in values) and len(set[object]().union(*values)) > 1
    own = {group.params.get(axis) for group in compared(baseline, groups)}
    return own.pop() if apart and len(own) == 1 else None


def _defense(group: Group) -> str:
    return str(group.params.get("defense", group.params.get("defense.name")))

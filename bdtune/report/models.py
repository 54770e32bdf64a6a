"""How well a detector tells attacked models from clean ones: over trials, as one model alone proves nothing.

A defense that judges models has the metrics `<defense>/index`, larger for a more suspicious model, and
`<defense>/detected`, 1 or 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.knobs import short_names
from bdtune.metrics import auroc
from bdtune.report.groups import label
from bdtune.report.selection import setting_axes, settings
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bdtune.report.groups import Group

INDEX, DETECTED = "/index", "/detected"
ENOUGH = 10
"""Models of a kind from which on their number says something."""


def model_notes(groups: Sequence[Group]) -> list[str]:
    """Return for each setting that met attacked and clean models how well its verdicts tell them apart.

    Models whose attack did not take count as neither.
    """
    axes = short_names(setting_axes(groups))
    return [line for members in settings(groups) for line in _of_setting(members, axes)]


def _of_setting(members: Sequence[Group], axes: Mapping[str, str]) -> list[str]:
    names = {name for group in members for trial in group.done for name in trial.metrics}
    detectors = sorted(
        name.removesuffix(DETECTED)
        for name in names
        if name.endswith(DETECTED) and name.removesuffix(DETECTED) + INDEX in names
    )
    clean = [group for group in members if _is_clean(group)]
    attacked = [group for group in members if not _is_clean(group) and group.attack_took]
    where = label(members[0], list(axes), axes)
    lines = []
    for name in detectors:
        scores = [_values(kind, name + INDEX) for kind in (attacked, clean)]
        if all(scores):
            verdicts = [_verdicts(kind, name + DETECTED) for kind in (attacked, clean)]
            lines.append(_line(name, where, scores, verdicts))
    return lines


def _is_clean(group: Group) -> bool:
    return show(group.params.get("attack", group.params.get("attack.name"))) == "none"


def _values(groups: Sequence[Group], metric: str) -> list[float]:
    return [value for group in groups for value in group.values(metric)]


def _verdicts(groups: Sequence[Group], metric: str) -> str:
    found = _values(groups, metric)
    return f"{round(sum(found))} of {len(found)}"


def _line(name: str, where: str, scores: Sequence[Sequence[float]], verdicts: Sequence[str]) -> str:
    attacked, clean = scores
    truth = np.repeat([True, False], [len(attacked), len(clean)])
    area = auroc(np.array([*attacked, *clean]), truth)
    few = f"; fewer than {ENOUGH} of a kind say little" if min(len(attacked), len(clean)) < ENOUGH else ""
    setting = f" with {where}" if where else ""
    return (
        f"models, {name}{setting}: {verdicts[0]} attacked and {verdicts[1]} clean ones detected, "
        f"auroc of the index {area:.3f}{few}"
    )

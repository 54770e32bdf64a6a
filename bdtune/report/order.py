"""Which rows of a sweep a table shows, and in which order: the best first, or by any metric or setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.errors import Problem, UserError, nearest
from bdtune.knobs import short_names
from bdtune.metrics import metric_of
from bdtune.plugins.metric import better
from bdtune.report.groups import Group, rank, varying
from bdtune.report.selection import cases, given, ranking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.trials.results import SweepResult


def blocks(groups: Sequence[Group], result: SweepResult, sort: str | None = None) -> list[list[Group]]:
    """Return the rows, undefended ones first in each block.

    Without `sort` each data set and attack has a block, with its settings best first by the sweep's rule;
    those that cannot be ranked come last. With it all settings are in one block, by a metric (best first) or
    a setting's value (rising); those that have none come last. Raises `UserError` for an unknown name.
    """
    baselines = [group for group in groups if group.is_baseline]
    if sort is not None:
        return [[*baselines, *_sorted([group for group in groups if not group.is_baseline], sort)]]
    found = []
    for case in cases(groups):
        first = [group for group in baselines if given(group.params) == given(case.groups[0].params)]
        ranked = ranking(case.groups, result.metric, result.mode)
        known = {id(group) for group in ranked}
        found.append([*first, *ranked, *(group for group in case.groups if id(group) not in known)])
    used = {id(group) for block in found for group in block}
    others = [group for group in baselines if id(group) not in used]
    return [others, *found] if others else found


def shown(found: Sequence[Sequence[Group]], *, top: int | None, limit: int | None) -> list[Group]:
    """Return the undefended rows and the first `top` settings of each block.

    Where `top` is None, as many as `limit` allows in all, but at least one of each block.
    """
    sizes = [sum(not group.is_baseline for group in block) for block in found]
    if top is None:
        top = max(sizes, default=0)
        while limit is not None and top > 1 and sum(min(size, top) for size in sizes) > limit:
            top -= 1
    rows = []
    for block in found:
        settings = [group for group in block if not group.is_baseline]
        rows += [group for group in block if group.is_baseline] + settings[:top]
    return rows


def sort_metric(groups: Sequence[Group], sort: str | None) -> str | None:
    """Return the metric that rows are sorted by; None where it is a setting, or nothing was asked for."""
    return None if sort is None or sort in _settings(groups) else metric_of(sort)


def _settings(groups: Sequence[Group]) -> dict[str, str]:
    """Return what varies by short name and by dotted path."""
    axes = varying(groups)
    return {**{name: path for path, name in short_names(axes).items()}, **{path: path for path in axes}}


def _sorted(settings: Sequence[Group], sort: str) -> list[Group]:
    known = _settings(settings)
    if sort in known:
        path = known[sort]
        return sorted(settings, key=lambda g: (path not in g.params, rank(g.params.get(path))))
    metric = metric_of(sort)
    metrics = dict.fromkeys(name for group in settings for trial in group.done for name in trial.metrics)
    if metric not in metrics:
        names = [*(name for name in metrics if "/" not in name), *short_names(varying(settings)).values()]
        expected = f"expected a metric or a setting that varies: {', '.join(names) or 'there is none yet'}"
        raise UserError(Problem("--sort", expected, f"'{sort}'", hint=nearest(sort, names)))
    sign = -1.0 if better(metric) == "max" else 1.0

    def key(group: Group) -> tuple[bool, float]:
        stat = group.stat(metric)
        return (stat is None, sign * stat.mean if stat else 0.0)

    return sorted(settings, key=key)

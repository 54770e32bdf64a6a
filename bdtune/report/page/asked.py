"""What a sweep was asked: its plugins, what it varies, its seeds and its rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from bdtune.config.sweep import sweep_to_dict
from bdtune.report.groups import grouped, rank, varying
from bdtune.report.page.provenance import Fact
from bdtune.report.selection import rule_title
from bdtune.trials.results import SEED, show

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bdtune.config.sweep import SweepSpec
    from bdtune.trials.results import Scalar, SweepResult

MOST_VALUES = 12
OVER = {
    "each": "a best setting of each data set and attack",
    "mean": "one setting, best in mean over data sets and attacks",
    "worst": "one setting, best in its worst case over data sets and attacks",
}


def asked(spec: SweepSpec, result: SweepResult) -> list[Fact]:
    """Return what was asked, with what varies and its values."""
    groups = [group for group in grouped(result.trials) if not group.is_baseline]
    axes = varying(groups)
    plugins = [
        Fact(kind, _listed(group.params.get(kind) for group in groups))
        for kind in ("dataset", "attack", "defense", "model")
    ]
    varied = [
        Fact(axis, _listed(g.params[axis] for g in groups if axis in g.params))
        for axis in axes
        if axis not in ("dataset", "attack", "defense", "model")
    ]
    seeds = _listed(trial.params.get(SEED) for trial in result.trials)
    rule = f"{spec.select.mode} {rule_title(spec.select.metric)}: {OVER[spec.select.over]}"
    search = [Fact("search", f"{spec.search.sampler}, {spec.search.trials} trials")] if spec.search else []
    counts = result.summary()
    status = ", ".join(f"{count} {status}" for status, count in counts["status"].items())
    return [
        *plugins, *varied, Fact("seeds", seeds), *search, Fact("best by", rule),
        Fact("trials", f"{counts['trials']} ({status}), {len(groups)} settings"),
        Fact("command", f"bdtune sweep {spec.name}"),
    ]  # fmt: skip


def _listed(values: Iterable[Scalar]) -> str:
    found = sorted(dict.fromkeys(values), key=rank)
    more = len(found) - MOST_VALUES
    return ", ".join([*map(show, found[:MOST_VALUES]), *([f"and {more} more"] if more > 0 else [])])


def settings_text(spec: SweepSpec) -> str:
    """Return the sweep's settings as YAML, without the folder of the data sets, which is a machine's own."""
    values = sweep_to_dict(spec)
    values["trial"].pop("data_root", None)
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

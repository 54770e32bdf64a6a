"""What a sweep or campaign was asked: its plugins, what it varies, its seeds and its rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from bdtune.config.load import SWEEPS
from bdtune.config.sweep import sweep_to_dict
from bdtune.report.cross_axes import PLUGINS
from bdtune.report.groups import grouped, rank, varying
from bdtune.report.page.provenance import Fact
from bdtune.report.selection import rule_title
from bdtune.trials.results import SEED, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bdtune.config.campaign import Campaign
    from bdtune.config.sweep import Select, SweepSpec
    from bdtune.report.groups import Group
    from bdtune.trials.results import Scalar, SweepResult

MOST_VALUES = 12
OVER = {
    "each": "a best setting of each data set and attack",
    "mean": "one setting, best in mean over data sets and attacks",
    "worst": "one setting, best in its worst case over data sets and attacks",
}


def asked(spec: SweepSpec, result: SweepResult) -> list[Fact]:
    """Return what was asked, with what varies and its values."""
    groups = _defended(result)
    axes = varying(groups)
    varied = [
        Fact(axis, _listed(g.params[axis] for g in groups if axis in g.params))
        for axis in axes
        if axis not in PLUGINS
    ]
    search = [Fact("search", f"{spec.search.sampler}, {spec.search.trials} trials")] if spec.search else []
    return [
        *_plugins(groups), *varied, _seeds(result), *search, Fact("best by", _rule(spec.select)),
        _trials(result), Fact("command", f"bdtune sweep {spec.name}"),
    ]  # fmt: skip


def campaign_asked(campaign: Campaign, result: SweepResult, left_out: int) -> list[Fact]:
    """Return what a campaign was asked; `result` has the trials of all sweeps, `left_out` counts others."""
    settings = campaign.settings
    rules = dict.fromkeys(_rule(spec.select) for spec in campaign.sweeps)
    order = [Fact("first", ", ".join(settings.first))] if settings.first else []
    budget = [Fact("budget", f"{settings.budget:g} hours of stages")] if settings.budget else []
    others = [Fact("left out", f"{left_out} trials, which do not fit the budget")] if left_out else []
    return [
        Fact("sweeps", ", ".join(spec.name for spec in campaign.sweeps)), *order, *budget,
        *_plugins(_defended(result)), _seeds(result), Fact("best by", "; ".join(rules)), _trials(result),
        *others, Fact("command", f"bdtune campaign {campaign.name}"),
    ]  # fmt: skip


def _defended(result: SweepResult) -> list[Group]:
    return [group for group in grouped(result.trials) if not group.is_baseline]


def _plugins(groups: Sequence[Group]) -> list[Fact]:
    return [Fact(kind, _listed((g.params.get(kind) for g in groups), len(groups))) for kind in PLUGINS]


def _seeds(result: SweepResult) -> Fact:
    return Fact("seeds", _listed(trial.params.get(SEED) for trial in result.trials))


def _rule(select: Select) -> str:
    return f"{select.mode} {rule_title(select.metric)}: {OVER[select.over]}"


def _trials(result: SweepResult) -> Fact:
    counts = result.summary()
    status = ", ".join(f"{count} {status}" for status, count in counts["status"].items())
    return Fact("trials", f"{counts['trials']} ({status}), {len(_defended(result))} settings")


def _listed(values: Iterable[Scalar], most: int = MOST_VALUES) -> str:
    found = sorted(dict.fromkeys(values), key=rank)
    more = len(found) - most
    return ", ".join([*map(show, found[:most]), *([f"and {more} more"] if more > 0 else [])])


def settings_text(spec: SweepSpec) -> str:
    """Return the sweep's settings as YAML, without the folder of the data sets, which is a machine's own."""
    return _yaml(_portable(sweep_to_dict(spec)))


def campaign_text(campaign: Campaign) -> str:
    """Return the settings of a campaign and its sweeps as YAML, without folders of data sets."""
    values = campaign.to_dict()
    return _yaml({**values, SWEEPS: [_portable(sweep) for sweep in values[SWEEPS]]})


def _portable(sweep: dict[str, Any]) -> dict[str, Any]:
    trial = {key: value for key, value in sweep["trial"].items() if key != "data_root"}
    return {**sweep, "trial": trial}


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

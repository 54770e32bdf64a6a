"""Trials grouped over seeds: one group is one setting, with means and spreads of its numbers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from bdtune.trials.results import SEED, Scalar, TrialResult, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.trials.results import OracleRead


@dataclass(frozen=True)
class Stat:
    """Mean of n seeds; `std` is the sample standard deviation (n - 1), None for a single seed."""

    mean: float
    std: float | None
    n: int

    def text(self, digits: int = 3) -> str:
        """Return "0.989±0.002", or the mean alone for one seed."""
        spread = "" if self.std is None else f"±{rounded(self.std, digits, like=self.mean)}"
        return f"{rounded(self.mean, digits)}{spread}"


LARGE = 1000
"""Numbers from here on, such as seconds, are shown without decimals."""


def rounded(value: float, digits: int = 3, *, like: float | None = None) -> str:
    """Return a number with so many decimals; with none if it is large, or the number that it is `like`."""
    return f"{value:.{0 if abs(value if like is None else like) >= LARGE else digits}f}"


@dataclass(frozen=True, eq=False)
class Group:
    """All trials that differ in nothing but the seed, in the order of their seeds."""

    params: Mapping[str, Scalar]
    trials: tuple[TrialResult, ...]
    is_baseline: bool

    @cached_property
    def done(self) -> tuple[TrialResult, ...]:
        """The trials that ended well; only their numbers count."""
        return tuple(trial for trial in self.trials if trial.status == "done")

    @property
    def complete(self) -> bool:
        """Whether every trial ended well."""
        return len(self.done) == len(self.trials)

    def values(self, metric: str) -> list[float]:
        """Return a metric of each finished trial that has it finite, in the order of the seeds."""
        values = (trial.metrics.get(metric, math.nan) for trial in self.done)
        return [value for value in values if math.isfinite(value)]

    def stat(self, metric: str) -> Stat | None:
        """Return mean and spread of a metric over finished trials that have it finite, None without any."""
        values = self.values(metric)
        if not values:
            return None
        return Stat(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    @property
    def status(self) -> str:
        """Return "done", or what became of the trials: "1 done, 2 failed"."""
        counts: Counter[str] = Counter(trial.status for trial in self.trials)
        if len(counts) == 1:
            return next(iter(counts))
        order = ("done", "failed", "diverged", "stopped", "pending")
        return ", ".join(f"{counts[status]} {status}" for status in order if counts[status])

    @property
    def oracle(self) -> tuple[OracleRead, ...]:
        """Its knobs that were set by what no defender knows."""
        return self.trials[0].oracle

    @property
    def undefended_asr(self) -> Stat | None:
        """The attack success without a defense: the group's own if it has none, else its baselines'."""
        own = self.is_baseline or self.params.get("defense") == "none"
        return self.stat("asr") if own else self.stat("undefended/asr")

    @property
    def epochs(self) -> int | None:
        """The classifier's budget of epochs, which is the same for all seeds; None where it is not known."""
        return self.trials[0].epochs

    @property
    def attack_took(self) -> bool:
        """Whether the undefended model reached the attack's acceptance band; true where none is known."""
        band = self.trials[0].asr_band
        asr = self.undefended_asr
        return band is None or asr is None or asr.mean >= band


def grouped(trials: Iterable[TrialResult]) -> list[Group]:
    """Return the groups of trials: baselines first, then by the values of their parameters."""
    found: dict[tuple[bool, str], list[TrialResult]] = {}
    for trial in trials:
        found.setdefault((trial.is_baseline, trial.setting_text), []).append(trial)
    groups = []
    for (is_baseline, _), members in found.items():
        members.sort(key=lambda trial: (rank(trial.params.get(SEED)), trial.id))
        groups.append(Group(members[0].setting, tuple(members), is_baseline))
    axes = varying(groups)
    groups.sort(key=lambda group: order_of(group, axes))
    return groups


def order_of(group: Group, axes: Sequence[str]) -> tuple[object, ...]:
    """Return a sort key: baselines first, then axis by axis; total, so the order never depends on timing."""
    values = tuple([rank(group.params.get(axis)) for axis in axes])
    return (not group.is_baseline, values, group.trials[0].setting_text)


def rank(value: Scalar) -> tuple[int, float, str]:
    """Return a sort key for values of any type: none, then booleans and numbers, then text."""
    if value is None:
        return (0, 0.0, "")
    return (2, 0.0, value) if isinstance(value, str) else (1, float(value), "")


def varying(groups: Iterable[Group]) -> list[str]:
    """Return the parameters that differ among defended groups, in the order in which trials state them.

    A knob counts only where it differs among trials with the same plugin, or network of a plugin: that
    others have other knobs is reported by their names.
    """
    defended = [group for group in groups if not group.is_baseline]
    names = dict.fromkeys(name for group in defended for name in group.params)
    return [name for name in names if _differs(name, defended)]


def _differs(name: str, groups: Sequence[Group]) -> bool:
    missing = object()  # a knob that only some trials of a plugin have varies too
    every = [group.params.get(name, missing) for group in groups]
    if len(set(every)) == 1 and len(set(map(type, every))) == 1:  # most knobs of a large sweep
        return False
    parts = name.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    found: dict[object, set[object]] = {}
    for group in groups:
        owner = tuple([group.params.get(plugin) for plugin in above])
        found.setdefault(owner, set()).add(_hashed(group.params.get(name, missing)))
    return any(len(values) > 1 for values in found.values())


def _hashed(value: object) -> tuple[str, object]:
    return (type(value).__name__ if isinstance(value, bool | str) else "", value)


def label(group: Group, axes: Sequence[str], names: Mapping[str, str]) -> str:
    """Return a short name of a setting: "beta_nd=0.6 lambda=1"."""
    if group.is_baseline:
        return "undefended"
    return " ".join(f"{names[axis]}={show(group.params[axis])}" for axis in axes if axis in group.params)

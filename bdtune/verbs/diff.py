"""`bdtune diff`: which settings and numbers differ between two sweeps, or two trials."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdtune.config.identity import Identity
from bdtune.errors import Problem, UserError, nearest
from bdtune.knobs import short_names
from bdtune.metrics import metric_of
from bdtune.plugins.metric import METRICS
from bdtune.report import files
from bdtune.report.groups import Group, grouped, varying
from bdtune.report.table import Column, Row, Table
from bdtune.trials.known import KnownTrial
from bdtune.trials.results import show
from bdtune.trials.sweep_folder import SETTINGS
from bdtune.verbs.home import LEAST, find_trial, settings_of, sweeps_of
from bdtune.verbs.stores import store_for
from bdtune.verbs.tables import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bdtune.config.sweep import SweepSpec
    from bdtune.trials.results import Scalar, SweepResult

PLUGINS = ("dataset", "attack", "defense", "model")
ABSENT = "-"
EVALUATE = "evaluate"


@dataclass(frozen=True)
class Setting:
    """A setting that differs; "-" where there is none."""

    path: str
    first: str
    second: str


@dataclass(frozen=True)
class Number:
    """A number that differs, of one setting that both have."""

    setting: str
    metric: str
    first: float | None
    second: float | None
    beyond_spread: bool | None
    """Whether the difference is larger than both standard deviations over seeds; None without any."""

    @property
    def difference(self) -> float | None:
        """The second less the first."""
        return None if self.first is None or self.second is None else self.second - self.first


@dataclass(frozen=True)
class Differences:
    """What differs between two sweeps, or two trials."""

    first: str
    second: str
    settings: tuple[Setting, ...]
    numbers: tuple[Number, ...]
    equal: int
    """Settings that both have with equal numbers."""
    only_first: tuple[str, ...] = ()
    """Settings that the other lacks."""
    only_second: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        numbers = [{**asdict(number), "difference": number.difference} for number in self.numbers]
        return {**asdict(self), "numbers": numbers}


@dataclass(frozen=True)
class _Side:
    """A sweep that is compared."""

    folder: Path

    @cached_property
    def spec(self) -> SweepSpec:
        return settings_of(self.folder)

    @cached_property
    def result(self) -> SweepResult:
        return files.read(self.folder)

    @cached_property
    def groups(self) -> list[Group]:
        return grouped(self.result.trials)


def diff(first: str, second: str, run_dir: Path, store: str | None = None) -> Differences:
    """Return what differs; each word is a sweep's name or folder, or a trial's id.

    Raises `UserError` where one is neither, one is a sweep and the other a trial, or a sweep has its results
    elsewhere than in `store`.
    """
    folders = [_folder(word, run_dir) for word in (first, second)]
    one, two = folders
    if one is not None and two is not None:
        if store:
            store_for(run_dir, [one, two], store)
        return _of_sweeps(_Side(one), _Side(two))
    for word, folder in zip((first, second), folders, strict=True):
        if folder is None and not _is_id(word):
            known = sweeps_of(run_dir)
            expected = f"expected a sweep of {run_dir} ({', '.join(known) or 'there is none yet'}), "
            expected += "a sweep's folder, or a trial's id"
            raise UserError(Problem("", expected, f"'{word}'", hint=nearest(word, known)))
    if one is not None or two is not None:
        raise UserError(Problem("", "expected two sweeps, or two trials", f"'{first}' and '{second}'"))
    return _of_trials(first, second, run_dir, store)


def _folder(word: str, run_dir: Path) -> Path | None:
    """Return a sweep's folder by its name, or as a path; None where it is none."""
    if (known := sweeps_of(run_dir).get(word)) is not None:
        return known
    return Path(word).absolute() if (Path(word) / SETTINGS).is_file() else None


def _is_id(word: str) -> bool:
    return len(word) >= LEAST and set(word) <= set("0123456789abcdef")


def _of_trials(first: str, second: str, run_dir: Path, store: str | None) -> Differences:
    one, two = (find_trial(word, run_dir, store).result for word in (first, second))
    settings = _differing(one.params, two.params)
    names = dict.fromkeys([*one.metrics, *two.metrics])
    numbers = [Number("", name, one.metrics.get(name), two.metrics.get(name), None) for name in names]
    differing = tuple(number for number in numbers if number.first != number.second)
    return Differences(one.id, two.id, tuple(settings), differing, int(not differing))


def _differing(first: Mapping[str, Scalar], second: Mapping[str, Scalar]) -> list[Setting]:
    """Return the parameters that differ; of another plugin its name alone."""
    paths = [p for p in {**first, **second} if first.get(p, ABSENT) != second.get(p, ABSENT)]
    paths = [p for p in paths if not any(p.startswith(f"{other}.") for other in paths)]
    return [Setting(p, *(show(params.get(p, ABSENT)) for params in (first, second))) for p in paths]


def _of_sweeps(one: _Side, two: _Side) -> Differences:
    matched, only_one, only_two = _matched(one.groups, two.groups)
    axes = varying([*(a for a, _ in matched), *only_one, *only_two])
    names = short_names(axes)

    def name(group: Group) -> str:
        shown = [f"{names[axis]}={show(group.params[axis])}" for axis in axes if axis in group.params]
        role = ["undefended"] if group.is_baseline else []
        return " ".join([*role, *shown]) or show(group.params.get("defense", ""))

    metrics = list(METRICS.own) + [metric_of(side.result.metric) for side in (one, two)]
    numbers, equal = [], 0
    for a, b in matched:
        found = [number for metric in dict.fromkeys(metrics) if (number := _number(name(a), metric, a, b))]
        equal += not found
        numbers += found
    return Differences(
        one.result.sweep,
        two.result.sweep,
        tuple(_settings(one, two)),
        tuple(numbers),
        equal,
        tuple(map(name, only_one)),
        tuple(map(name, only_two)),
    )


def _settings(one: _Side, two: _Side) -> Iterable[Setting]:
    """Yield what was asked for differently (fixed settings, axes, seeds, the rule), and what computed it."""
    for each in Identity.of(one.spec).differences(Identity.of(two.spec)):
        yield Setting(each.path, each.theirs, each.ours)
    for path in dict.fromkeys([*one.spec.axis_paths(), *two.spec.axis_paths(), "seed"]):
        values = [_values(side, path) for side in (one, two)]
        if values[0] != values[1]:
            yield Setting(path, *(", ".join(each) or ABSENT for each in values))
    rules = [f"{side.result.metric} ({side.result.mode})" for side in (one, two)]
    if rules[0] != rules[1]:
        yield Setting("select", *rules)
    one_by, two_by = _computed_by(one), _computed_by(two)
    for name in dict.fromkeys([*one_by, *two_by]):
        if one_by.get(name) != two_by.get(name):
            yield Setting(f"computed with {name}", *(by.get(name) or ABSENT for by in (one_by, two_by)))


def _computed_by(side: _Side) -> dict[str, str]:
    """Return what computed a sweep's last finished trial: commit, libraries, processor."""
    home = side.folder.parent.parent
    for trial in reversed(side.result.trials):
        known, use = KnownTrial(home, trial, side.folder.name), trial.stages.get(EVALUATE)
        if use is not None and (manifest := known.manifest(use.key)) is not None:
            return {"commit": manifest.commit, **manifest.environment}
    return {}


def _values(side: _Side, path: str) -> list[str]:
    """Return the values that a sweep's defended trials have of a setting."""
    trials = [trial for trial in side.result.trials if not trial.is_baseline]
    found = {trial.params[path]: None for trial in trials if path in trial.params}
    return sorted(map(show, found), key=lambda text: (len(text), text))


Pairs = list[tuple[Group, Group]]


def _matched(first: list[Group], second: list[Group]) -> tuple[Pairs, list[Group], list[Group]]:
    """Return the groups of settings that both sweeps have, and those that only one has.

    A setting that is the same in all of one sweep's trials of some plugins, and another in all of the other
    sweep's, is what the sweeps differ in: it keeps no two groups apart.
    """
    constant = {plugins: _constant_differences(plugins, first, second) for plugins in map(_plugins, first)}

    def key(group: Group) -> str:
        ignored = constant.get(_plugins(group), frozenset())
        own = {path: value for path, value in group.params.items() if path not in ignored}
        return json.dumps([group.is_baseline, own], sort_keys=True)

    theirs = {key(group): group for group in second}
    pairs = [(group, theirs.pop(key(group))) for group in first if key(group) in theirs]
    taken = {id(group) for group, _ in pairs}
    return pairs, [group for group in first if id(group) not in taken], list(theirs.values())


def _plugins(group: Group) -> tuple[Any, ...]:
    return (group.is_baseline, *(group.params.get(kind) for kind in PLUGINS))


def _constant_differences(
    plugins: tuple[Any, ...], first: list[Group], second: list[Group]
) -> frozenset[str]:
    sides = [[g.params for g in groups if _plugins(g) == plugins] for groups in (first, second)]
    paths = {path for params in sides for each in params for path in each}

    def values(params: list[Mapping[str, Scalar]], path: str) -> set[str]:
        return {json.dumps(each[path]) if path in each else "" for each in params}

    found = {path: [values(params, path) for params in sides] for path in paths}
    return frozenset(path for path, (a, b) in found.items() if len(a) == len(b) == 1 and a != b)


def _number(setting: str, metric: str, one: Group, two: Group) -> Number | None:
    a, b = one.stat(metric), two.stat(metric)
    if a is None and b is None:
        return None
    if a is None or b is None:
        return Number(setting, metric, a.mean if a else None, b.mean if b else None, None)
    if a.mean == b.mean and (a.n != b.n or one.values(metric) == two.values(metric)):
        return None
    spreads = [stat.std for stat in (a, b) if stat.std is not None]
    beyond = abs(b.mean - a.mean) > max(spreads) if spreads else None
    return Number(setting, metric, a.mean, b.mean, beyond)


def diff_tables(found: Differences) -> list[Table]:
    """Return a table of the settings and one of the numbers."""
    heads = tuple(Column(word, numeric=False) for word in ("setting", found.first, found.second))
    settings = tuple(Row((each.path, each.first, each.second)) for each in found.settings)
    one = Table("settings that differ", heads, settings, () if settings else ("none",))
    columns: tuple[Column, ...] = (
        Column("setting", numeric=False),
        Column("metric", numeric=False),
        Column(found.first),
        Column(found.second),
        Column("difference"),
    )
    rows = tuple(
        Row((n.setting, n.metric, _text(n.first), _text(n.second), _difference(n)), _kind(n))
        for n in found.numbers
    )
    if not any(number.setting for number in found.numbers):
        columns, rows = columns[1:], tuple(Row(row.cells[1:], row.kind) for row in rows)
    return [one, Table("numbers that differ", columns, rows, tuple(_notes(found)))]


def _text(number: float | None) -> str:
    return ABSENT if number is None else f"{number:.4f}"


def _difference(number: Number) -> str:
    if number.difference is None:
        return ABSENT
    return f"{number.difference:+.4f}{'*' if number.beyond_spread else ''}"


def _kind(number: Number) -> str:
    return "failed" if number.beyond_spread else ""


def _notes(found: Differences) -> list[str]:
    notes = [] if found.numbers else ["none"]
    if found.equal and any((found.numbers, found.only_first, found.only_second)):
        notes.append(f"{counted(found.equal, 'setting')} with equal numbers")
    if any(number.beyond_spread for number in found.numbers):
        notes.append("*: more than both standard deviations over seeds")
    for name, only in ((found.first, found.only_first), (found.second, found.only_second)):
        if only:
            more = f"; and {len(only) - 5} more" if len(only) > 5 else ""
            notes.append(f"only in {name}: {'; '.join(only[:5])}{more}")
    return notes

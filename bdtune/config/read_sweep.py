"""Reading a sweep from a document, with every problem noted in the document."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bdtune.checking import check, check_each, show
from bdtune.config.at_hand import parted
from bdtune.config.expand import expand
from bdtune.config.limits import too_many_axes
from bdtune.config.published import check_rows, read_published
from bdtune.config.search import check_search, distinct, known_path
from bdtune.config.space import Space
from bdtune.config.sweep import (
    Axes,
    Domain,
    Search,
    Select,
    SweepSettings,
    SweepSpec,
    When,
    spelled_out,
)
from bdtune.config.table_layout import layout_problems
from bdtune.config.trial import PLUGIN_KINDS, TRIAL_KEYS, TrialSpec, build, parse_sections
from bdtune.effects import no_effect
from bdtune.errors import Problem, nearest
from bdtune.metrics import STABLE, is_stable, metric_of
from bdtune.plugins import registry
from bdtune.plugins.field import plain
from bdtune.plugins.metric import METRICS
from bdtune.tuning.samplers import SAMPLERS
from bdtune.tuning.schedulers import NONE, SCHEDULERS, SchedulerKnobs

if TYPE_CHECKING:
    from collections.abc import Collection

    from bdtune.config.at_hand import Absent
    from bdtune.config.document import Document
    from bdtune.tuning.samplers import Sampler
    from bdtune.tuning.schedulers import Scheduler

_AXIS_KEYS = ("grid", "zip", "vary", "seeds", "when", "exclude")


def read_sweep(document: Document, name: str, *, check_data: bool = True, partial: bool = False) -> SweepSpec:
    """Return the sweep of a document with all its trials checked; raises `ConfigError` with all problems.

    `name` is the sweep's name unless it gives one. `check_data` looks whether the data sets are there;
    `partial` leaves out the trials of those that are not, unless that is all of them.
    """
    sections, problems = parse_sections(document.trial)
    for problem in problems:
        document.report(problem)
    for problem in too_many_axes(document.sweep):
        document.report(problem)
        document.finish()  # before each of them is looked at
    values = _settings(document, name)
    numbers, tables = read_published(document)
    values["published"] = tuple(numbers)
    axes = _axis_values(document)
    space = Space(_raw(document, sections), sections, **axes, overridden=frozenset(document.overridden))
    search: Search | None = values.get("search")
    if search is not None:
        values["search"] = search = _with_objective(search, values.get("select", Select()))
    _check_clashes(document, space, search)
    _check_objectives(document, values, sections, space)
    _check_attacked(document, values, sections, space)
    found: list[TrialSpec] = []
    absent: tuple[Absent, ...] = ()
    if search is None:
        found = expand(space, document.report, check_data=check_data, partial=partial)
        axes |= {"when": space.when, "exclude": space.exclude}
        if not document.found and not document.overridden:  # else some rows may well have no trial
            check_rows(document, tables, found)
        found, absent = _at_hand(document, found, partial=partial)
    else:
        check_search(document, space, search, check_data=check_data)
    if values.get("table") is not None:
        for problem in layout_problems(values["table"], "table", found, document.overridden):
            document.report(problem)
    document.finish()
    spec = SweepSpec(trial=build(sections), **axes, **values)
    spec._points = tuple(found) if search is None else None
    spec._absent = absent
    return spec


def _at_hand(
    document: Document, trials: list[TrialSpec], *, partial: bool
) -> tuple[list[TrialSpec], tuple[Absent, ...]]:
    """Return the trials whose data sets are there, and what the others lack, if that may be.

    Where it may not, say how the trials that lack nothing are run alone.
    """
    if partial:
        present, absent = parted(trials)
        if not present:
            for each in absent:
                document.report(each.problem)
        return present, absent
    names = ",".join(dict.fromkeys(trial.dataset.plugin_name() for trial in trials))
    if names and any(problem.path == "data_root" for _, problem in document.found):
        expected = "expected every data set of the sweep to be there"
        hint = f"dataset={names} runs its trials alone; 'bdtune plan' leaves the others out"
        document.wrong("dataset", expected, f"{names} alone", hint)
    return trials, ()


def _settings(document: Document, name: str) -> dict[str, Any]:
    """Return the settings that vary nothing, where they are right; some have a short form."""
    plain = SweepSettings.model_fields.keys() - {"scheduler", "published"}
    raw, short = {"name": name, **{key: value for key, value in document.sweep.items() if key in plain}}, {}
    if isinstance(raw.get("select"), str):
        raw["select"], short["select.metric"] = {"metric": raw["select"]}, "select"
    if "search" in raw:
        raw["search"] = spelled_out(raw["search"])
    values, problems = check_each(SweepSettings, raw, "the sweep")
    for problem in map(_of_domain, problems):
        document.report(replace(problem, path=short.get(problem.path, problem.path)))
    if "scheduler" in document.sweep:
        values["scheduler"] = _scheduler(document, document.sweep["scheduler"])
    return values


def _scheduler(document: Document, raw: Any) -> SchedulerKnobs:
    """Read a scheduler's name, or a mapping with it and the knobs that this scheduler has."""
    written = raw if isinstance(raw, dict) else {"name": NONE if raw is None else raw}
    name = written.get("name", NONE)
    entry = SCHEDULERS.get(name) if isinstance(name, str) else None
    cls, values = (entry.knobs, written) if entry else (SchedulerKnobs, {"name": name})
    read, problems = check(cls, values, f"the scheduler {name}")
    for problem in problems:
        path = problem.path if isinstance(raw, dict) else ""
        document.report(replace(problem, path=path).under("scheduler"))
    return read or SchedulerKnobs()


def _of_domain(problem: Problem) -> Problem:
    """Say how a domain is written, where the problem would name the parts of `Domain`."""
    if not problem.path.startswith("search.space."):
        return problem
    parts = re.fullmatch(r"(.*)\.(kind|values|[a-z_]+)", problem.path)
    inner = parts is not None and (parts[2] in Domain.model_fields or problem.about_key)
    expected = "expected {uniform: [a, b]}, {log_uniform: [a, b]}, {int: [a, b]} or {choice: [...]}"
    return Problem(parts[1] if parts and inner else problem.path, expected)


def _check_attacked(
    document: Document, values: dict[str, Any], sections: dict[str, Any], space: Space
) -> None:
    """Report rules that read the accuracy under an attack on the classifier, which no trial makes."""
    varied = {path.partition(".")[0] for axes in (space.grid, space.vary, *space.zip) for path in axes}
    if "evaluation" in varied or "evaluation" not in sections or sections["evaluation"].robust != "none":
        return
    select, search = values.get("select"), values.get("search")
    rules = [("select.metric", select.metric)] if select is not None else []
    if search is not None and "metric" in document.sweep["search"]:
        rules += [("search.metric", metric) for metric in search.metric]
    for path, rule in rules:
        metric = METRICS.own.get(metric_of(rule))
        if metric is not None and metric.rule == rule and metric.measured_on == "attacked":
            expected = f"expected 'evaluation.robust' to be pgd for {rule}, which is measured under an attack"
            document.wrong(path, expected, "evaluation.robust: none", "Set evaluation.robust: pgd")


def _axis_values(document: Document) -> dict[str, Any]:
    sweep = document.sweep
    raw_zip = sweep.get("zip", [])
    groups = raw_zip if isinstance(raw_zip, list) else [raw_zip]
    labels = [f"zip[{i}]" for i in range(len(groups))] if isinstance(raw_zip, list) else ["zip"]
    read = [_axes(document, label, group, again=True) for label, group in zip(labels, groups, strict=True)]
    return {
        "grid": _axes(document, "grid", sweep.get("grid", {})),
        "zip": tuple(g for label, g in zip(labels, read, strict=True) if _in_step(document, label, g)),
        "vary": _axes(document, "vary", sweep.get("vary", {})),
        "seeds": _seeds(document, sweep.get("seeds")),
        "when": _when(document, sweep.get("when", [])),
        "exclude": _exclude(document, sweep.get("exclude", [])),
    }


def _axes(document: Document, label: str, raw: Any, *, again: bool = False) -> Axes:
    """Read a mapping from dotted paths to lists of values; what is wrong is left out.

    A list may hold a value `again` where lists are taken in step.
    """
    if not isinstance(raw, dict):
        document.wrong(label, "expected a mapping from dotted paths to lists of values", show(raw))
        return {}
    good = [path for path, values in raw.items() if _is_axis(document, label, path, values, again=again)]
    return {path: tuple(raw[path]) for path in good}


def _is_axis(document: Document, label: str, path: str, values: Any, *, again: bool) -> bool:
    if not known_path(document, label, path):
        return False
    at = f"{label}.{path}"
    if path in no_effect(TrialSpec):
        document.wrong(at, "expected a setting that can change the result", show(path))
    elif not isinstance(values, list):
        hint = f"Write whole paths: '{path}.{next(iter(values), 'knob')}'" if isinstance(values, dict) else ""
        document.wrong(at, "expected a list of values", show(values), hint)
    elif not values:
        document.wrong(at, "expected at least one value", "[]")
    else:
        return again or distinct(document, at, values)
    return False


def _in_step(document: Document, label: str, group: Axes) -> bool:
    lengths = {path: len(values) for path, values in group.items()}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{n} for {path}" for path, n in lengths.items())
        document.wrong(label, "expected lists of equal length", got)
    return len(set(lengths.values())) == 1


def _seeds(document: Document, raw: Any) -> tuple[int, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list) or not raw:
        document.wrong("seeds", "expected a list of seeds, such as [0, 1, 2]", show(raw))
        return ()
    return tuple(raw) if distinct(document, "seeds", raw) else ()


def _when(document: Document, raw: Any) -> tuple[When, ...]:
    if not isinstance(raw, list):
        document.wrong("when", "expected a list of entries {if: {...}, grid: {...}}", show(raw))
        return ()
    entries = []
    for number, entry in enumerate(raw):
        label = f"when[{number}]"
        read, problems = check(When, entry, "when")
        for problem in problems:
            # What is wrong with the axes' form is said in the same words as for `grid`.
            if not problem.path.startswith("grid."):
                document.report(problem.under(label))
        if isinstance(entry, dict) and isinstance(entry.get("grid"), dict) and entry["grid"]:
            axes = _axes(document, f"{label}.grid", entry["grid"])
            if read is not None and len(axes) == len(read.grid):
                entries.append(read.model_copy(update={"condition": _with_names(read.condition)}))
    return tuple(entries)


def _exclude(document: Document, raw: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(raw, list) or not all(isinstance(entry, dict) and entry for entry in raw):
        expected = "expected a list of settings to leave out, such as [{defense.beta_nd: 0.6, seed: 1}]"
        document.wrong("exclude", expected, show(raw))
        return ()
    return tuple(map(_with_names, raw))


def _with_names(condition: dict[str, Any]) -> dict[str, Any]:
    """Return a condition with the plugins in it spelled as their files are."""

    def spelled(path: str, value: Any) -> Any:
        if isinstance(value, list):
            return [spelled(path, each) for each in value]
        return registry.canonical(PLUGIN_KINDS[path], value) if isinstance(value, str) else value

    return {p: spelled(p, value) if p in PLUGIN_KINDS else value for p, value in condition.items()}


def _raw(document: Document, sections: dict[str, Any]) -> dict[str, Any]:
    """Return the base trial as plain values; a plugin that is wrong stands with its defaults."""
    raw: dict[str, Any] = {}
    for key in TRIAL_KEYS:
        if key in PLUGIN_KINDS and key not in sections:
            written = document.trial.get(key)
            name = written.get("name") if isinstance(written, dict) else written
            name = registry.canonical(PLUGIN_KINDS[key], name) if isinstance(name, str) else name
            raw[key] = {"name": name} if name in registry.names(PLUGIN_KINDS[key]) else None
        elif key in sections:
            raw[key] = plain(sections[key])
    return raw


def _check_clashes(document: Document, space: Space, search: Search | None) -> None:
    """Report settings that are varied in two places, and leave them out of the second."""
    places: dict[str, str] = {}
    always = [("grid", space.grid), ("vary", space.vary), ("seeds", {"seed": ()} if space.seeds else {})]
    always += [(f"zip[{i}]" if len(space.zip) > 1 else "zip", group) for i, group in enumerate(space.zip)]
    # Two `when` entries may vary one path, for different points.
    sometimes = [(f"when[{i}].grid", entry.grid) for i, entry in enumerate(space.when)]
    for label, axes in always + sometimes:
        for path in list(axes):
            if path in places:
                at = label if label == "seeds" else f"{label}.{path}"
                got = f"'{path}' in {places[path]} too"
                document.wrong(at, "expected each setting to be varied in one place", got)
                del axes[path]
                space.seeds = () if label == "seeds" else space.seeds
            elif not label.startswith("when"):
                places[path] = label
    if search is not None:
        for key in _AXIS_KEYS:
            if document.sweep.get(key):
                hint = "A choice in 'search.space' takes a list of values"
                document.wrong(key, "expected no finite axes beside 'search'", f"'{key}'", hint)


def _with_objective(search: Search, select: Select) -> Search:
    if search.metric:
        return search
    return search.model_copy(update={"metric": (select.metric,), "mode": (select.mode,)})


def _check_objectives(
    document: Document, values: dict[str, Any], sections: dict[str, Any], space: Space
) -> None:
    search, select, scheduler = (values.get(key) for key in ("search", "select", "scheduler"))
    varied = {path for axes in (space.grid, space.vary, *space.zip) for path in axes}
    held_out = [key for key in ("holdout", "holdout_clean") if key in varied or sections.get(key, 1)]
    fixed = not any(path.partition(".")[0] == "evaluation" for path in varied)
    further = sections["evaluation"].metrics if fixed and "evaluation" in sections else METRICS.outside
    check_metric = partial(_check_metric, document, further=further, held_out=held_out)
    if select is not None:
        check_metric("select.metric", select.metric)
        _check_seeds(document, select.metric, space, search)
    if search is None:
        return
    raw = document.sweep["search"].get("metric")
    for number, metric in enumerate(search.metric if raw is not None else ()):
        path = f"search.metric[{number}]" if isinstance(raw, list) else "search.metric"
        check_metric(path, metric)
        _check_seeds(document, metric, space, search, path)
    chosen: list[tuple[str, Sampler | Scheduler]] = [("search.sampler", SAMPLERS.find(search.sampler))]
    chosen += [("scheduler", SCHEDULERS.find(scheduler.name))] if scheduler is not None else []
    for path, entry in chosen:
        if entry.objectives is not None and len(search.metric) > entry.objectives:
            expected = f"expected one that takes {len(search.metric)} objectives"
            document.wrong(path, expected, f"'{entry.name}', which takes {entry.objectives}")


def _check_seeds(
    document: Document, rule: str, space: Space, search: Search | None, path: str = "select.metric"
) -> None:
    """Report a rule of the spread over seeds where each setting has one seed; more may come by the words."""
    if not is_stable(rule):
        return
    if search is not None:
        expected = f"expected a rule of single trials, such as {rule.removesuffix(STABLE)}"
        document.wrong(path, expected, show(rule), "The settings of a search have one seed each")
        return
    axes = (space.grid, space.vary, *space.zip, *(entry.grid for entry in space.when))
    counts = [len(space.seeds), *(len(each["seed"]) for each in axes if "seed" in each)]
    if max(counts) < 2 and "seed" not in document.overridden:
        expected = f"expected two seeds or more for {rule}, which reads the spread over them"
        document.wrong(path, expected, "one seed", "Set seeds: [0, 1, 2]")


def _check_metric(
    document: Document, path: str, rule: str, *, further: Collection[str], held_out: Collection[str]
) -> None:
    """Report a rule that reads no metric; `further` names those that trials measure besides the package's."""
    measured = [METRICS.find(name) for name in (*METRICS.own, *further)]
    rules = {metric.rule: metric for metric in measured if metric.role != "report"}
    by_name = {metric.name: metric.rule for metric in rules.values()}
    base = rule.removesuffix(STABLE)
    if base in rules:
        for setting in (each for each in rules[base].settings if each not in held_out):
            expected = f"expected '{setting}' above 0 for {rule}, which is measured on the part held out"
            document.wrong(path, expected, f"{setting}: 0", f"Set {setting}: 0.1")
    elif base in by_name:
        honest = ", ".join(name for name, metric in rules.items() if metric.role == "honest")
        ending = rule.removeprefix(base)
        expected = f"expected '{by_name[base]}{ending}', as it reads the report data, or {honest}"
        document.wrong(path, expected, show(rule))
    elif metric_of(rule) in METRICS.outside:
        hint = f"Set evaluation.metrics: [{metric_of(rule)}]"
        document.wrong(path, "expected a metric that the evaluation measures", show(rule), hint)
    elif metric_of(rule) == base or "/" not in rule or metric_of(rule) in METRICS.own:
        expected = f"expected one of the metrics: {', '.join(rules)}"
        document.wrong(path, expected, show(rule), nearest(rule, rules))

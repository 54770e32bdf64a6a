"""Reading a sweep from a document, with every problem noted in the document."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from bdtune.config.checking import Fault, check, show
from bdtune.config.document import PLUGIN_KINDS, TRIAL_KEYS
from bdtune.config.expand import Space, expand
from bdtune.config.search import check_search, distinct, known_path
from bdtune.config.sweep import (
    REPORT_METRICS,
    SELECT_METRICS,
    Axes,
    Domain,
    Reference,
    Search,
    Select,
    SweepSpec,
    When,
    spelled_out,
)
from bdtune.config.trial import TrialSpec, build, parse_sections
from bdtune.effects import no_effect
from bdtune.errors import nearest
from bdtune.knobs import Knobs
from bdtune.plugins import registry

if TYPE_CHECKING:
    from bdtune.config.document import Document

_AXIS_KEYS = ("grid", "zip", "vary", "seeds", "when", "exclude")
_BY_HAND = (*_AXIS_KEYS, "trial", "name", "reference")
_PLAIN: dict[str, type[Knobs]] = {
    key: create_model(key, __base__=Knobs, **{key: (field.annotation, field)})  # type: ignore[call-overload]
    for key, field in SweepSpec.model_fields.items()
    if key not in _BY_HAND
}
_RATES = (*REPORT_METRICS, "select_acc", "undefended/acc", "undefended/asr")


def read_sweep(document: Document, name: str, *, check_data: bool = True) -> SweepSpec:
    """Return the sweep of a document with all its trials checked; raises `ConfigError` with all problems.

    `name` is the sweep's name unless it gives one. `check_data` looks whether the data sets are there.
    """
    sections, faults = parse_sections(document.trial)
    for fault in faults:
        document.report(fault)
    values = {"name": document.sweep.get("name", name), **_plain_values(document)}
    values["reference"] = _references(document, document.sweep.get("reference", []))
    axes = _axis_values(document)
    space = Space(_raw(document, sections), sections, **axes, overridden=frozenset(document.overridden))
    search: Search | None = values.get("search")
    if search is not None:
        values["search"] = search = _with_objective(search, values.get("select", Select()))
    _check_clashes(document, space, search)
    _check_objectives(document, values, sections, space)
    found: list[TrialSpec] = []
    if search is None:
        found = expand(space, document.report, check_data=check_data)
        axes |= {"when": space.when, "exclude": space.exclude}
    else:
        check_search(document, space, search, check_data=check_data)
    _check_name(document, values["name"])
    document.finish()
    spec = SweepSpec(trial=build(sections), **axes, **values)
    spec._points = tuple(found) if search is None else None
    return spec


def _check_name(document: Document, name: Any) -> None:
    if not isinstance(name, str):
        document.wrong("name", "expected text", show(name))
        return
    try:
        SweepSpec._is_safe(name)
    except ValueError as error:
        document.wrong("name", str(error))


def _plain_values(document: Document) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, cls in _PLAIN.items():
        if key not in document.sweep:
            continue
        raw, short = document.sweep[key], ""
        if key == "select" and isinstance(raw, str):
            raw, short = {"metric": raw}, ".metric"
        if key == "scheduler" and (isinstance(raw, str) or raw is None):
            raw, short = {"name": raw or "none"}, ".name"
        read, faults = check(cls, {key: spelled_out(raw) if key == "search" else raw}, key)
        for fault in faults:
            document.report(replace(_of_domain(fault), path=_of_domain(fault).path.removesuffix(short)))
        if read is not None:
            values[key] = getattr(read, key)
    return values


def _of_domain(fault: Fault) -> Fault:
    """Say how a domain is written, where the fault would name the parts of `Domain`."""
    if not fault.path.startswith("search.space."):
        return fault
    parts = re.fullmatch(r"(.*)\.(kind|values|[a-z_]+)", fault.path)
    inner = parts is not None and (parts[2] in Domain.model_fields or fault.about_key)
    expected = "expected {uniform: [a, b]}, {log_uniform: [a, b]}, {int: [a, b]} or {choice: [...]}"
    return Fault(parts[1] if parts and inner else fault.path, expected)


def _references(document: Document, raw: Any) -> tuple[Reference, ...]:
    if not isinstance(raw, list):
        document.wrong("reference", "expected a list of entries {params, metrics, source}", show(raw))
        return ()
    read = [_reference(document, f"reference[{number}]", entry) for number, entry in enumerate(raw)]
    return tuple(entry for entry in read if entry is not None)


def _reference(document: Document, label: str, raw: Any) -> Reference | None:
    entry, faults = check(Reference, raw, "reference")
    for fault in faults:
        document.report(fault.under(label))
    params, metrics = (raw.get(key) if isinstance(raw, dict) else None for key in ("params", "metrics"))
    for path in params if isinstance(params, dict) else ():
        known_path(document, f"{label}.params", path)
    for metric, value in metrics.items() if isinstance(metrics, dict) else ():
        path = f"{label}.metrics.{metric}"
        if metric not in _RATES and "/" not in metric:
            expected = f"expected one of the metrics: {', '.join(_RATES)}"
            document.wrong(path, expected, show(metric), nearest(metric, _RATES))
        elif metric in _RATES and isinstance(value, int | float) and not 0 <= value <= 1:
            document.wrong(path, "expected a number from 0 to 1", show(value))
    return entry


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
        read, faults = check(When, entry, "when")
        for fault in faults:
            # What is wrong with the axes' form is said in the same words as for `grid`.
            if not fault.path.startswith("grid."):
                document.report(fault.under(label))
        if isinstance(entry, dict) and isinstance(entry.get("grid"), dict) and entry["grid"]:
            axes = _axes(document, f"{label}.grid", entry["grid"])
            if read is not None and len(axes) == len(read.grid):
                entries.append(read)
    return tuple(entries)


def _exclude(document: Document, raw: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(raw, list) or not all(isinstance(entry, dict) and entry for entry in raw):
        expected = "expected a list of settings to leave out, such as [{defense.beta_nd: 0.6, seed: 1}]"
        document.wrong("exclude", expected, show(raw))
        return ()
    return tuple(raw)


def _raw(document: Document, sections: dict[str, Any]) -> dict[str, Any]:
    """Return the base trial as plain values; a plugin that is wrong stands with its defaults."""
    raw: dict[str, Any] = {}
    for key in TRIAL_KEYS:
        if key in PLUGIN_KINDS and key not in sections:
            written = document.trial.get(key)
            name = written.get("name") if isinstance(written, dict) else written
            known = isinstance(name, str) and name in registry.names(PLUGIN_KINDS[key])
            raw[key] = {"name": name} if known else None
        elif key in sections:
            raw[key] = _plain(key, sections[key])
    return raw


def _plain(key: str, value: Any) -> Any:
    if key in PLUGIN_KINDS:
        return (
            None
            if value is None
            else {"name": value.plugin_name(), **value.model_dump(mode="json", by_alias=True)}
        )
    return value.model_dump(mode="json", by_alias=True) if isinstance(value, Knobs) else value


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
    varied = any("holdout" in axes for axes in (space.grid, space.vary, *space.zip))
    held_out = varied or sections.get("holdout", 1) > 0
    if select is not None:
        _check_metric(document, "select.metric", select.metric, held_out=held_out)
    if search is None:
        return
    raw = document.sweep["search"].get("metric")
    for number, metric in enumerate(search.metric if raw is not None else ()):
        path = f"search.metric[{number}]" if isinstance(raw, list) else "search.metric"
        _check_metric(document, path, metric, held_out=held_out)
    if scheduler is not None and scheduler.name != "none" and len(search.metric) > 1:
        expected = "expected 'none' beside several objectives: it stops trials by one"
        document.wrong("scheduler", expected, show(scheduler.name))


def _check_metric(document: Document, path: str, metric: str, *, held_out: bool) -> None:
    if metric in SELECT_METRICS:
        if not held_out:
            expected = f"expected 'holdout' above 0 for {metric}, which is measured on the part held out"
            document.wrong(path, expected, "holdout: 0", "Set holdout: 0.1")
        return
    name = metric.removeprefix("oracle_")
    if metric != name and (name in REPORT_METRICS or "/" in name):
        return
    choices = [*SELECT_METRICS, *(f"oracle_{m}" for m in REPORT_METRICS)]
    if metric in REPORT_METRICS:
        expected = f"expected 'oracle_{metric}', as it reads the report data, or select_acc"
        document.wrong(path, expected, show(metric))
    else:
        expected = f"expected one of the metrics: {', '.join(choices)}"
        document.wrong(path, expected, show(metric), nearest(metric, choices))

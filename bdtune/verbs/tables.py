"""The tables of all verbs but `sweep`, in the neutral form that the report prints anywhere."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from bdtune.report.table import Column, Row, Table, duration, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.config.sweep import Resources, SweepSpec
    from bdtune.engine.plan import Plan, StageCount
    from bdtune.plugins.registry import Description
    from bdtune.trials.results import SweepResult
    from bdtune.verbs.check import Verdict
    from bdtune.verbs.doctor import Finding
    from bdtune.verbs.show import PluginPage

MARKS = {"ok": "ok", "info": "--", "problem": "!!"}
"""How `bdtune doctor` marks what it found."""


def plain_table(title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> Table:
    """Return a table of rows that all have the same keys."""
    names = list(rows[0]) if rows else ["none"]
    numeric = {name: bool(rows) and all(isinstance(row[name], int | float) for row in rows) for name in names}
    columns = tuple(Column(name, numeric[name], spare=0) for name in names)
    cells = tuple(Row(tuple(_text(row[name]) for name in names)) for row in rows)
    return Table(title, columns, cells, tuple(notes))


def counted(count: int, what: str) -> str:
    """Return a number with its noun: "1 trial", "2 trials"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def plan_json(spec: SweepSpec, plan: Plan) -> dict[str, Any]:
    """Return the shape that `bdtune plan --json` prints."""
    return {
        **plan.to_json(),
        "left_out": [each.to_json() for each in spec.absent],
        "notes": list(spec.notes),
    }


def plan_table(spec: SweepSpec, plan: Plan) -> Table:
    """Return what a sweep needs, stage by stage, what is left out, and what the sweep says of itself."""
    rows = [
        {
            "stage": stage,
            "to compute": ("" if count.exact else "<= ") + str(count.unique - count.cached - count.reused),
            "in the store": count.cached,
            "unshared": count.without_sharing,
            "written": _bytes(count, count.written),
            "read": _bytes(count, count.read),
        }
        for stage, count in plan.stages.items()
    ]
    notes = []
    if any(not count.exact for count in plan.stages.values()):
        notes.append(
            "<=: upper bound, exact after the earlier stages have finished; equal results are computed once"
        )
    for stage, count in plan.stages.items():
        if count.reused:
            notes.append(f"{stage}: {count.reused} more are saved as by-products of longer trainings")
    if plan.unpredicted:
        notes.append(no_cost(plan.unpredicted, spec.resources))
    else:
        shared, unshared = duration(plan.seconds_shared), duration(plan.seconds_unshared)
        notes.append(f"about {shared} of stages to compute; {unshared} if nothing were shared")
    notes.append(_traffic(plan))
    if plan.weights:
        notes.append(left_behind(plan.weights, spec.weights_gb))
    notes += [each.line() for each in spec.absent]
    notes += [f"note: {note}" for note in spec.notes]
    title = f"{spec.name}: {counted(plan.trials, 'trial')} and {counted(plan.baselines, 'baseline')}"
    table = plain_table(title, rows, notes)
    columns = tuple(Column(column.name, column.name != "stage") for column in table.columns)
    return Table(table.title, columns, table.rows, table.notes)


def no_cost(stages: Sequence[str], resources: Resources) -> str:
    """Return the note that names stages of which no cost is known, and says how to estimate them."""
    hint = "; speed.images_per_s=N says how fast a GPU is, resources.gpu=0 estimates CPUs"
    return f"no cost known yet: {', '.join(stages)}{hint if resources.gpu else ''}"


def _traffic(plan: Plan) -> str:
    """Return how many bytes of results the plan moves, and by which rule."""
    rule = "read: results of other trials, each once a trial; copies on a node serve some of it"
    counts = plan.stages.values()
    if any(count.written is None or count.read is None for count in counts):
        return f"{rule}; ?: not run on this data and network yet"
    written, read = (sum(getattr(count, what) for count in counts) for what in ("written", "read"))
    return f"at most {size(written)} written, {size(read)} read; {rule}"


def left_behind(weights: int, most: float | None) -> str:
    """Return what classifiers' weights a sweep leaves in its store, and which setting decides that."""
    all_ = f"weights of defended classifiers: at most {size(weights)}"
    if most is None:
        return f"{all_}, which all stay (weights_gb=null)"
    if most * 1e9 >= weights:
        return f"{all_}, which all stay, as weights_gb={most:g} allows"
    rest = size(int(most * 1e9))
    return f"{all_}, of which {rest} and those of the best stay (weights_gb={most:g}; null: all)"


def _bytes(count: StageCount, moved: int | None) -> str:
    """Return bytes that are to be moved: "<= 1.2 MB", "-" for none, "?" where they are not known yet."""
    if moved is None:
        return "?"
    return ("" if count.exact else "<= ") + size(moved) if moved else "-"


def trial_table(result: SweepResult) -> Table:
    """Return the metrics of a trial beside those of its baseline."""
    ordered = sorted(result.trials, key=lambda trial: trial.id == result.best)
    names = list(dict.fromkeys(name for trial in reversed(ordered) for name in trial.metrics))
    heads = ["undefended" if trial.is_baseline else str(trial.params["defense"]) for trial in ordered]
    rows = [
        {
            "metric": name,
            **{head: trial.metrics.get(name) for head, trial in zip(heads, ordered, strict=True)},
        }
        for name in names
        if not name.startswith("undefended/")
    ]
    notes = [f"{head}: {trial.status}" for head, trial in zip(heads, ordered, strict=True)]
    uses = [use for trial in ordered for use in trial.stages.values()]
    computed = sum(use.computed for use in uses)
    notes.append(f"{computed} stages computed for these trials, {len(uses) - computed} taken from others")
    reads = [read.text() for trial in ordered for read in trial.oracle]
    oracle = [f"oracle: {', '.join(reads)}, which no defender knows"] if reads else []
    rows = rows or [{"metric": "none", **dict.fromkeys(heads)}]
    return plain_table("trial " + str(result.best), rows, ["; ".join(notes), *oracle])


def list_table(kind: str, found: Iterable[Description]) -> Table:
    """Return names with a sentence and the source of each."""
    rows = [{"name": entry.name, "what it is": entry.summary, "source": entry.source} for entry in found]
    return plain_table(kind, rows)


def shown_table(kind: str, shown: PluginPage) -> Table:
    """Return the knobs of a plugin, and where it is from."""
    rows = [
        {"knob": k.path, "default": k.default, "values": f"{k.type} {k.allowed}".strip(), "meaning": k.about}
        for k in shown.knobs
    ]
    notes = [f"source: {shown.source}"] if shown.source else []
    notes += [f"presets: {', '.join(shown.presets)}"] if shown.presets else []
    if not rows:
        return Table(
            f"{kind} {shown.name}", (Column("no knobs", numeric=False),), (), (shown.summary, *notes)
        )
    return plain_table(f"{kind} {shown.name}", rows, [shown.summary, *notes])


def cache_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return the entries of a store."""
    stored, dropped, seconds = (sum(row[name] for row in rows) for name in ("bytes", "dropped", "seconds"))
    notes = [f"{counted(len(rows), 'artefact')}, {stored / 1e6:.1f} MB, {duration(seconds)} of computing"]
    if dropped:
        without = counted(sum(row["dropped"] > 0 for row in rows), "artefact")
        notes.append(
            f"{without} without the arrays, {size(dropped)} (weights_gb): computed again when asked for"
        )
    shown = rows if dropped else [{n: v for n, v in row.items() if n != "dropped"} for row in rows]
    return plain_table("store", shown, notes)


def doctor_table(found: Iterable[Finding]) -> Table:
    """Return what was found."""
    rows = [{"": MARKS[f.severity], "about": f.about, "found": f.text} for f in found]
    problems = sum(f.severity == "problem" for f in found)
    note = f"{counted(problems, 'problem')} (!!)" if problems else "no problem; what is marked -- is optional"
    return plain_table("doctor", rows, [note])


def check_table(found: Sequence[Verdict]) -> Table:
    """Return how many promises each plugin keeps."""
    rows = []
    for plugin, group in groupby(found, lambda verdict: verdict.plugin):
        kept = [verdict.kept for verdict in group]
        mark = MARKS["ok" if all(kept) else "problem"]
        rows.append({"": mark, "plugin": plugin, "promises": len(kept), "kept": sum(kept)})
    broken = sum(not verdict.kept for verdict in found)
    note = f"{counted(broken, 'promise')} broken (!!)" if broken else "all promises kept"
    return plain_table("check", rows, [note])

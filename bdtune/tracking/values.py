"""From results to what MLflow stores: flat parameters, finite metrics, tags within its limits."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from bdtune.knobs import short_names
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.tracking.runs import Run
    from bdtune.trials.results import OracleRead, Scalar, SweepResult, TrialResult

PARAM_LENGTH = 6000  # MLflow's limits; a longer value would be refused or cut without a sign
TAG_LENGTH = 8000
NAME_LENGTH = 250
DIGEST_LENGTH = 36
CURVE_POINTS = 100  # what a plot can show; 10,000 trials with three curves stay in a few hundred MB

DATA_COUNTS = ("samples", "poisoned", "covered", "clean")
"""Of the training set as it was poisoned: the rate that a knob asks for is rounded, or of another basis."""

_FORBIDDEN = re.compile(r"[^/\w.\- :]")

TRIAL_STATUS = {"done": "FINISHED", "failed": "FAILED", "diverged": "FAILED", "stopped": "KILLED"}
RUNNING = "RUNNING"
SWEEP_STATUS = {"running": RUNNING, "done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the page on training runs; it would show traces of language models else."""
BEST = "bdtune.best"
"""Tag of the runs of the best settings; of the parent run which they are."""

Metric = tuple[str, float, int]
"""Name, finite value, step."""


def name(text: str) -> str:
    """Return a name that MLflow accepts for a parameter, metric or tag."""
    return _FORBIDDEN.sub("_", text)[:NAME_LENGTH]


def cut(text: str, length: int) -> str:
    """Return a text of at most `length` characters that shows when it was cut."""
    return text if len(text) <= length else text[: length - 3] + "..."


def params_of(params: Mapping[str, Scalar]) -> dict[str, str]:
    """Return every knob as text, floats with all their digits."""
    texts = {path: repr(value) if isinstance(value, float) else show(value) for path, value in params.items()}
    return {name(path): cut(text, PARAM_LENGTH) for path, text in texts.items()}


def knob_metrics(params: Mapping[str, Scalar], axes: Iterable[str]) -> list[Metric]:
    """Return the numeric knobs that vary as metrics, so that they can be filtered by range."""
    shown = [path for path in axes if path in params]
    numbers = {p: v for p in shown if isinstance(v := params[p], int | float) and not isinstance(v, bool)}
    return [(name(f"knob/{path}"), float(v), 0) for path, v in numbers.items() if math.isfinite(v)]


def trial_metrics(trial: TrialResult, axes: Iterable[str] = ()) -> list[Metric]:
    """Return final metrics, knobs among the `axes`, costs, counts and curves.

    What is not finite is left to a tag.
    """
    final = [(name(key), value, 0) for key, value in trial.metrics.items() if math.isfinite(value)]
    costs = [
        ("cost/stage_seconds", trial.computed_seconds, 0),
        ("cost/saved_seconds", trial.saved_seconds, 0),
    ]
    data = vars(trial.data) if trial.data else {}
    counts = [(f"data/{key}", float(data[key]), 0) for key in DATA_COUNTS if data.get(key) is not None]
    curves = [
        (name(f"{stage}/{column}"), float(value), int(row["epoch"]))
        for stage, rows in trial.curves.items()
        for row in thinned(rows)
        for column, value in row.items()
        if column != "epoch" and math.isfinite(value)
    ]
    return [*final, *knob_metrics(trial.params, axes), *costs, *counts, *curves]


def dataset_of(trial: TrialResult) -> dict[str, str] | None:
    """Return the data set that a trial's defense was given, by name and digest."""
    if trial.data is None:
        return None
    digest = trial.data.digest
    source = json.dumps({"recipe": digest})
    return {
        "name": trial.data.name,
        "digest": digest[:DIGEST_LENGTH],
        "source": source,
        "context": trial.data.context,
    }


def trial_tags(trial: TrialResult) -> dict[str, str]:
    """Return a trial's tags: its status, its role, what became of each stage, what was not finite."""
    stages = {
        name(f"stage.{stage}"): f"{use.key} {'computed' if use.computed else 'hit'}"
        for stage, use in trial.stages.items()
    }
    lost = sorted(key for key, value in trial.metrics.items() if not math.isfinite(value))
    optional = {
        "bdtune.error": trial.error,
        "bdtune.baseline": trial.baseline_id,
        "bdtune.not_finite": ", ".join(lost) or None,
        "bdtune.oracle": oracle_tag(trial.oracle) if trial.oracle else None,
    }
    tags = {
        "bdtune.status": trial.status,
        "bdtune.role": "undefended" if trial.is_baseline else "trial",
        **stages,
    }
    tags.update({key: value for key, value in optional.items() if value is not None})
    return {key: cut(value, TAG_LENGTH) for key, value in tags.items()}


def oracle_tag(reads: Iterable[OracleRead]) -> str:
    """Return all that used what no defender has: "select by oracle_der; defense.oracle_target=0"."""
    return "; ".join(read.text() for read in reads) or "none"


def selection_tags(result: SweepResult) -> dict[str, str]:
    """Return the parent run's tags: the rule, what it chose, and what used what no defender has."""
    each = "; ".join(f"{name}: {trial}" for name, trial in result.choices.items())
    return {
        BEST: (each if len(result.by_group) > 1 else result.best) or "none",
        "bdtune.select": f"{result.mode} {result.metric}",
        "bdtune.select_over": result.over,
        "bdtune.oracle": oracle_tag(result.oracle),
    }


def interrupted(run: Run, time: int) -> Run:
    """Return a run that was running as one that was interrupted at a time (Unix, ms)."""
    tags = {**run.tags, "bdtune.status": "interrupted"}
    return replace(run, status=SWEEP_STATUS["interrupted"], time=time, tags=tags)


OPTIONAL_TAGS = ("bdtune.error", "bdtune.not_finite")
"""Tags that a trial which failed and was repeated must lose."""


def run_name(trial: TrialResult, axes: Sequence[str]) -> str:
    """Return a readable name made of the parameters that vary: "beta_nd=0.6 seed=1".

    That of an undefended model has its attack, and of these those that it depends on.
    """
    names = short_names(axes)
    shown = [axis for axis in axes if axis in trial.params and not (trial.is_baseline and _defenses(axis))]
    parts = [f"{names[axis]}={show(trial.params[axis])}" for axis in shown if axis != "attack"]
    attack = show(trial.params["attack"]) if "attack" in trial.params else ""
    if trial.is_baseline:
        parts = ["undefended", *filter(None, [attack]), *parts]
    elif "attack" in shown:
        parts = [f"attack={attack}", *parts]
    return cut(" ".join(parts) or trial.id, NAME_LENGTH)


def _defenses(axis: str) -> bool:
    """Return whether an axis is the defense's own: no undefended model depends on it."""
    return axis.partition(".")[0] == "defense"


def thinned(rows: Sequence[Mapping[str, float]], points: int = CURVE_POINTS) -> list[dict[str, float]]:
    """Return at most `points` rows of a curve, evenly spread, with the first and the last."""
    numbered = [{"epoch": float(index), **row} for index, row in enumerate(rows, start=1)]
    if len(rows) <= points:
        return numbered
    return [numbered[round(i * (len(rows) - 1) / (points - 1))] for i in range(points)]


def sweep_metrics(result: SweepResult) -> list[Metric]:
    """Return the parent run's metrics: counts, costs, and the numbers of the best settings."""
    summary = result.summary()
    found = {
        "trials/total": summary["trials"],
        **{f"trials/{status}": count for status, count in summary["status"].items()},
        "stages/computed": summary["stages_computed"],
        "stages/shared": summary["stages_shared"],
        "cost/stage_seconds": summary["seconds_computed"],
        "cost/saved_seconds": summary["seconds_saved"],
        **_best_metrics(result),
    }
    return [(name(key), value, 0) for key, value in found.items()]


def _best_metrics(result: SweepResult) -> dict[str, float]:
    """Return means over the seeds of the best setting, spreads and numbers; on each data set and attack.

    `best/acc` is a mean, `best/acc_std` a sample standard deviation (n - 1), `best/n` counts finished seeds.
    """
    found: dict[str, float] = {}
    for group, trials in result.best_settings.items():
        done = [trial for trial in trials if trial.status == "done"]
        head = "/".join(filter(None, ("best", group)))
        found[f"{head}/n"] = len(done)
        for key in dict.fromkeys(key for trial in done for key in trial.metrics if "/" not in key):
            values = [trial.metrics[key] for trial in done if math.isfinite(trial.metrics.get(key, math.nan))]
            found |= {f"{head}/{key}": fmean(values)} if values else {}
            found |= {f"{head}/{key}_std": stdev(values)} if len(values) > 1 else {}
    for best in result.overall:
        numbers = {"mean": best.mean, "std": best.std, "worst": best.worst}
        found |= {f"best_in_{best.over}/{key}": v for key, v in numbers.items() if v is not None}
    return found


def best_trials(result: SweepResult) -> tuple[str, ...]:
    """Return the ids of all trials of the best settings: their runs are marked."""
    return tuple(trial.id for trials in result.best_settings.values() for trial in trials)


def identity_of(trial: TrialResult) -> Any:
    """Return what makes a trial's result new: not its costs, which differ when the store answers."""
    value = trial.to_json()
    metrics = {key: number for key, number in value["metrics"].items() if not key.startswith("cost/")}
    return [trial.status, metrics, value["params"], trial.error, trial.baseline_id]

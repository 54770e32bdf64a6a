"""The page of a sweep's experiment in MLflow: its description, its tags, and a view of its runs.

A view is a tag that MLflow's page lists under "Views": columns and order of the table of runs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from bdtune.metrics import metric_of
from bdtune.plugins.metric import HEADLINE
from bdtune.tracking import values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec

FILE = "experiment.json"
VIEW = "bdtune"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
TAG_LENGTH = 5000
"""MLflow's limit of an experiment's tag."""
MOST_COLUMNS = 12
"""Settings that vary and have a column of their own."""


def tags_of(spec: SweepSpec, axes: Iterable[str], created: int) -> dict[str, str]:
    """Return a sweep's tags: what it is about, and the view; `created` is a Unix time in ms."""
    trial = spec.trial
    plugins = {
        "dataset": trial.dataset,
        "attack": trial.attack,
        "defense": trial.defense,
        "model": trial.model,
    }
    about = {f"bdtune.{kind}": plugin.plugin_name() if plugin else "none" for kind, plugin in plugins.items()}
    metric, mode = spec.objectives[0]
    tags = {
        **values.EXPERIMENT_TAGS,
        **about,
        "mlflow.note.content": description(spec, axes),
        "mlflow.experiment.primaryMetric.name": metric_of(metric),
        "mlflow.experiment.primaryMetric.greaterIsBetter": "true" if mode == "max" else "false",
        VIEW_TAG: view(axes, metric_of(metric), mode, created),
    }
    return {key: values.cut(value, TAG_LENGTH) for key, value in tags.items()}


def description(spec: SweepSpec, axes: Iterable[str]) -> str:
    """Return what the sweep is about, in Markdown."""
    varied = ", ".join(f"`{axis}`" for axis in axes) or "nothing"
    lines = [
        spec.description.strip(),
        f"Varied: {varied}. Best: {spec.select.mode} `{spec.select.metric}`.",
        f"The run `{spec.name}` is the sweep: its page has the table. The others are trials, and those "
        "called `undefended ...` the models that they are compared with. "
        f"`{values.BEST}` marks the best setting.",
    ]
    return "\n\n".join(filter(None, lines))


def view(axes: Iterable[str], metric: str, mode: str, created: int) -> str:
    """Return the view of the runs: the headline metrics and what varies; best first."""
    metrics = dict.fromkeys([*HEADLINE, metric])
    columns = [
        _column("tags", values.BEST),
        *(_column("metrics", each) for each in metrics),
        *(_column("params", values.name(axis)) for axis in list(axes)[:MOST_COLUMNS]),
        _column("attributes", "Duration"),
    ]
    state = {
        "selectedColumns": columns,
        "columnOrder": columns,
        "orderByKey": _column("metrics", metric),
        "orderByAsc": mode == "min",
        "runsHiddenMode": "SHOW_ALL",
    }
    about = {"name": "bdtune: what varies, best first", "createdAt": created, "updatedAt": created}
    return json.dumps({**about, "state": json.dumps(state, separators=(",", ":"))}, separators=(",", ":"))


def read_tags(folder: Path) -> Mapping[str, str]:
    """Return the tags that a sweep's folder holds for its experiment."""
    try:
        return {**values.EXPERIMENT_TAGS, **json.loads((folder / FILE).read_text(encoding="utf-8"))}
    except (FileNotFoundError, ValueError):
        return values.EXPERIMENT_TAGS


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"

"""Where the numbers of a report come from: code, machines, devices, seeds, data."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import bdtune
from bdtune.engine.manifest import git_commit
from bdtune.knobs import short_names
from bdtune.report.groups import grouped, rank, varying
from bdtune.report.table import Column, Row, Table
from bdtune.trials.results import DATA_SEED, SEED, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bdtune.engine.manifest import Manifest
    from bdtune.trials.results import SweepResult, TrialResult

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "ray", "mlflow", "optuna")


@dataclass(frozen=True)
class Fact:
    """A line of the page: what, and its value."""

    name: str
    value: str


def facts(result: SweepResult, manifests: Sequence[Manifest]) -> list[Fact]:
    """Return what computed the results, as their manifests say, and what wrote the page."""
    created = sorted(manifest.created for manifest in manifests)
    params = [trial.params for trial in result.trials]
    found = {
        "computed by commit": _counted(m.commit or "outside git" for m in manifests),
        "computed on": _counted(manifest.host for manifest in manifests),
        "computed": " to ".join(dict.fromkeys((created[0], created[-1]))) if created else "",
        "device, precision": _counted(
            f"{p.get('numerics.device')}, {p.get('numerics.precision')}" for p in params
        ),
        "deterministic": _values(params, "numerics.deterministic"),
        "seeds": _values(params, SEED),
        "data_seed": _values(params, DATA_SEED),
        "page written by": f"bdtune {bdtune.__version__}, commit {git_commit() or 'outside git'}",
        "versions there": ", ".join([f"Python {platform.python_version()}", *_versions()]),
    }
    return [Fact(name, value) for name, value in found.items() if value]


def _counted(values: Iterable[str]) -> str:
    """Return distinct values, the most frequent first, with how many results each has where they differ."""
    counts = Counter(values).most_common()
    return "; ".join(value if len(counts) == 1 else f"{value} ({count})" for value, count in counts)


def _values(params: Iterable[Mapping[str, object]], path: str) -> str:
    found: dict[object, None] = dict.fromkeys(own[path] for own in params if path in own)
    return ", ".join(show(value) for value in sorted(found, key=rank))  # type: ignore[arg-type]


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def data_table(result: SweepResult) -> Table:
    """Return the poisoned sets that trials were given, with their digests and counts."""
    uses = dict.fromkeys(trial.data for trial in result.trials if trial.data is not None)
    names = ("data", "digest", "samples", "poisoned", "cover", "clean")
    columns = tuple(Column(name, numeric=name not in ("data", "digest")) for name in names)
    rows = [
        Row(
            (
                u.name,
                u.digest,
                *("-" if n is None else str(n) for n in (u.samples, u.poisoned, u.covered, u.clean)),
            )
        )
        for u in uses
    ]
    return Table("", columns, tuple(rows))


def trials_table(result: SweepResult) -> Table:
    """Return every trial with its id, what distinguishes it, its status and its error's last line."""
    groups = grouped(result.trials)
    axes = varying(groups)
    names = short_names(axes)
    heads = ("trial", *names.values(), "seed", "status", "error")
    columns = tuple(Column(name, numeric=name == "seed") for name in heads)
    return Table("", columns, tuple(_trial_row(t, axes) for g in groups for t in g.trials))


def _trial_row(trial: TrialResult, axes: Sequence[str]) -> Row:
    values = [show(trial.params[axis]) if axis in trial.params else "-" for axis in axes]
    values = [
        "undefended" if trial.is_baseline and a.startswith("defense") else v
        for a, v in zip(axes, values, strict=True)
    ]
    error = (trial.error or "").strip().splitlines()[-1:]
    kind = "failed" if trial.status in ("failed", "diverged") else "undefended" if trial.is_baseline else ""
    return Row((trial.id, *values, show(trial.params.get(SEED)), trial.status, *(error or ["-"])), kind)

"""What a sweep leaves behind: trials, their stages and numbers. Tracking and report read nothing else."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Scalar = str | int | float | bool | None
Status = Literal["pending", "done", "failed", "diverged", "stopped"]
SEED = "seed"
"""The dotted name of the master seed: the one parameter over which a table takes means."""


@dataclass(frozen=True)
class StageUse:
    """One stage of one trial: computed by this trial, or shared (found in the store, or made for another)."""

    key: str
    computed: bool
    seconds: float = 0.0
    """What computing it cost, whoever paid; 0 when unknown."""


@dataclass(frozen=True)
class DataUse:
    """The data that a trial's defense was given: a name for people, a digest of data and poison recipe."""

    name: str
    digest: str
    context: str = "fit"
    samples: int | None = None
    """Training images that the defense was given; None, as the next two, where the files are not at hand."""
    poisoned: int | None = None
    """Those that carry the trigger and the attacker's label."""
    covered: int | None = None
    """Those that carry a trigger and their own label."""


@dataclass(frozen=True)
class TrialResult:
    """One trial's outcome.

    `params` maps each knob's dotted path to its value; `metrics` holds fractions in [0, 1] under the names of
    the project (`acc`, `asr`, `undefended/asr`, `gssd/...`); `curves` holds a stage's rows, one per epoch.
    """

    id: str
    status: Status
    params: Mapping[str, Scalar] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, StageUse] = field(default_factory=dict)
    error: str | None = None
    reference: bool = False
    """Whether the trial is the undefended model that others are compared with."""
    reference_id: str | None = None
    asr_band: float | None = None
    """The undefended ASR under which the attack did not take; None: nothing is judged."""
    epochs: int | None = None
    """Epochs of the classifier's own weights on all or nearly all samples; None: unknown, or handed over."""
    undefended_epochs: int | None = None
    """The same of the undefended model that the trial is compared with."""
    data: DataUse | None = None
    curves: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)
    started: float | None = None
    """Unix time in seconds, as `ended`."""
    ended: float | None = None

    @property
    def computed_seconds(self) -> float:
        """Seconds of the stages this trial computed itself."""
        return sum(use.seconds for use in self.stages.values() if use.computed)

    @property
    def saved_seconds(self) -> float:
        """Seconds of the stages this trial found computed."""
        return sum(use.seconds for use in self.stages.values() if not use.computed)

    def to_json(self, *, curves: bool = False) -> dict[str, Any]:
        """Return the trial as JSON values; non-finite numbers become null."""
        uses = self.stages.items()
        stages = {name: {"key": u.key, "computed": u.computed, "seconds": u.seconds} for name, u in uses}
        value: dict[str, Any] = {
            "id": self.id,
            "status": self.status,
            "params": dict(self.params),
            "metrics": {name: _finite(number) for name, number in self.metrics.items()},
            "stages": stages,
            "error": self.error,
            "reference": self.reference,
            "reference_id": self.reference_id,
            "asr_band": self.asr_band,
            "epochs": self.epochs,
            "undefended_epochs": self.undefended_epochs,
            "data": vars(self.data).copy() if self.data else None,
            "started": self.started,
            "ended": self.ended,
        }
        if curves:
            value["curves"] = {
                stage: [{name: _finite(number) for name, number in row.items()} for row in rows]
                for stage, rows in self.curves.items()
            }
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrialResult:
        """Return the trial that `to_json` wrote, null as NaN; raises `ValueError` for another shape."""
        try:
            fields = dict(value)
            if fields["status"] not in get_args(Status):
                raise ValueError(f"a trial's status cannot be {fields['status']!r}")
            fields["metrics"] = {name: _number(number) for name, number in fields["metrics"].items()}
            fields["stages"] = {name: StageUse(**use) for name, use in fields.get("stages", {}).items()}
            fields["data"] = DataUse(**fields["data"]) if fields.get("data") else None
            fields["curves"] = {
                stage: [{name: _number(number) for name, number in row.items()} for row in rows]
                for stage, rows in fields.get("curves", {}).items()
            }
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a trial's result: {error}") from error


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep, and the one that the selection rule chose."""

    sweep: str
    trials: tuple[TrialResult, ...] = ()
    best: str | None = None
    metric: str = "oracle_der"
    mode: Literal["max", "min"] = "max"

    def summary(self) -> dict[str, Any]:
        """Return counts of trials by status, of stages computed and shared, and seconds spent and saved."""
        uses = [use for trial in self.trials for use in trial.stages.values()]
        return {
            "trials": len(self.trials),
            "status": dict(sorted(Counter(trial.status for trial in self.trials).items())),
            "stages_computed": sum(use.computed for use in uses),
            "stages_shared": sum(not use.computed for use in uses),
            "seconds_computed": sum(trial.computed_seconds for trial in self.trials),
            "seconds_saved": sum(trial.saved_seconds for trial in self.trials),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune sweep --json` prints."""
        return {
            "sweep": self.sweep,
            "trials": [trial.to_json() for trial in self.trials],
            "best": self.best,
            "select": {"metric": self.metric, "mode": self.mode},
            "summary": self.summary(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SweepResult:
        """Return the sweep that `to_json` wrote; raises `ValueError` for another shape."""
        try:
            trials = tuple(TrialResult.from_json(trial) for trial in value["trials"])
            select = value["select"]
            return cls(value["sweep"], trials, value["best"], select["metric"], select["mode"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a sweep's result: {error}") from error


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """Return for each dotted path its shortest ending that no other path shares; `a.name` counts as `a`."""
    paths = list(dict.fromkeys(paths))
    parts = {path: path.removesuffix(".name").split(".") for path in paths}
    short: dict[str, str] = {}
    for path in paths:
        for length in range(1, len(parts[path]) + 1):
            ending = parts[path][-length:]
            if sum(other[-length:] == ending for other in parts.values()) == 1:
                break
        else:
            ending = path.split(".")
        short[path] = ".".join(ending)
    return short


def show(value: Scalar) -> str:
    """Return a parameter's value as people write it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _number(number: float | None) -> float:
    return math.nan if number is None else float(number)

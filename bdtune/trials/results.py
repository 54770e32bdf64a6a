"""What a sweep leaves behind: trials, their stages and numbers. Tracking and report read nothing else."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from bdtune.metrics import is_oracle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.config.sweep import Over
    from bdtune.metrics import Mode


Scalar = str | int | float | bool | None
Status = Literal["pending", "done", "failed", "diverged", "stopped"]
SEED = "seed"
"""The dotted name of the training seed: the one parameter over which a table takes means."""
DATA_SEED = "data_seed"
"""That of the seed of the poisoned set: a setting like any other; none where it follows the training seed."""


@dataclass(frozen=True)
class OracleRead:
    """Something in a sweep that uses test data, or knowledge of the attack, which no defender has."""

    reader: str
    """"search", "scheduler" or "select"; else the dotted path of a knob."""
    read: str
    """The rule by which it decides, as `oracle_der`; of a knob its value."""

    def text(self) -> str:
        """Return it in words: "search by oracle_der", "defense.oracle_target=0"."""
        return f"{self.reader}={self.read}" if "." in self.reader else f"{self.reader} by {self.read}"


@dataclass(frozen=True)
class StageUse:
    """One stage of one trial: computed by this trial, or shared (found in the store, or made for another)."""

    key: str
    computed: bool
    seconds: float = 0.0
    """What computing it cost, whoever paid; 0 when unknown, as all that follows."""
    bytes: int = 0
    """Size of its result."""
    read: int = 0
    """Bytes that this trial read to compute it: results of others, each with the first stage it is for.

    What the driver derived in this trial's name counts as its own here, and is among what copies counted.
    """
    fetched: int = 0
    """Of these, as the node's copies counted them, bytes that came from a bucket."""
    served: int = 0
    """Bytes that the node had copies of."""


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
    clean: int | None = None
    """Further images, known to be clean, that the defense could ask for."""


@dataclass(frozen=True)
class TrialResult:
    """One trial's outcome.

    `params` maps each knob's dotted path to its value; `metrics` holds fractions in [0, 1] under the names of
    the project (`acc`, `asr`, `undefended/asr`, `gssd/...`). `stages` and `curves` (rows of an epoch) go by a
    stage's role in the trial, such as "retrain", as a defense may run one stage twice.
    """

    id: str
    status: Status
    params: Mapping[str, Scalar] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, StageUse] = field(default_factory=dict)
    error: str | None = None
    is_baseline: bool = False
    """Whether the trial is the undefended model that others are compared with."""
    baseline_id: str | None = None
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
    oracle: tuple[OracleRead, ...] = ()
    """Knobs of this trial that were set by what no defender knows."""

    @cached_property
    def setting(self) -> dict[str, Scalar]:
        """The parameters but the seed, sorted: trials that differ in the seed alone are one setting."""
        return {name: self.params[name] for name in sorted(self.params) if name != SEED}

    @cached_property
    def setting_text(self) -> str:
        """These as JSON."""
        return json.dumps(self.setting)

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
        stages = {name: vars(use).copy() for name, use in self.stages.items()}
        value: dict[str, Any] = {
            "id": self.id,
            "status": self.status,
            "params": dict(self.params),
            "metrics": {name: _finite(number) for name, number in self.metrics.items()},
            "stages": stages,
            "error": self.error,
            "is_baseline": self.is_baseline,
            "baseline_id": self.baseline_id,
            "asr_band": self.asr_band,
            "epochs": self.epochs,
            "undefended_epochs": self.undefended_epochs,
            "data": vars(self.data).copy() if self.data else None,
            "started": self.started,
            "ended": self.ended,
            "oracle": [vars(read).copy() for read in self.oracle],
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
            fields["oracle"] = tuple(OracleRead(**read) for read in fields.get("oracle", ()))
            fields["curves"] = {
                stage: [{name: _number(number) for name, number in row.items()} for row in rows]
                for stage, rows in fields.get("curves", {}).items()
            }
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a trial's result: {error}") from error


@dataclass(frozen=True)
class GroupBest:
    """The best setting on one data set and attack."""

    name: str
    """What distinguishes it from the sweep's other ones: "blend", "cifar10 badnets rate=0.05"."""
    params: Mapping[str, Scalar]
    """Data set, attack, and what else of these differs in the sweep."""
    best: str | None
    """Id of the setting's first finished trial; None where no setting can be ranked."""


@dataclass(frozen=True)
class OverallBest:
    """The setting that is best over several data sets and attacks, by its mean or by its worst value.

    Values are means over seeds of the rule's metric; without a setting that was ranked there are none.
    """

    over: Literal["mean", "worst"]
    trials: tuple[str, ...]
    """Id of its first finished trial on each of them."""
    mean: float | None
    std: float | None
    """Sample standard deviation (n - 1) over data sets and attacks."""
    worst: float | None
    worst_on: str | None
    """The name of the data set and attack on which it is worst."""
    groups: int
    """Over how many data sets and attacks it was ranked."""
    skipped: tuple[str, ...]
    """Those that no setting can be ranked on: the attack did not take, say."""
    left_out: int
    """Settings that have no result on one of them."""


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep, and what the selection rule chose."""

    sweep: str
    trials: tuple[TrialResult, ...] = ()
    best: str | None = None
    """Id of a trial of the one best setting; None where each data set and attack has its own."""
    metric: str = "oracle_der"
    mode: Mode = "max"
    over: Over = "each"
    by_group: tuple[GroupBest, ...] = ()
    overall: tuple[OverallBest, ...] = ()
    """With several data sets and attacks: the best in mean and in the worst case."""
    oracle: tuple[OracleRead, ...] = ()
    """All that used what no defender has."""

    @property
    def choices(self) -> dict[str, str]:
        """Id of the best setting's first trial by the name of each data set and attack, as `over` asks."""
        one = next((best for best in self.overall if best.over == self.over), None)
        if one is None:
            return {group.name: group.best for group in self.by_group if group.best is not None}
        ranked = [group.name for group in self.by_group if group.name not in one.skipped]
        return dict(zip(ranked, one.trials, strict=False))  # no trials where no setting was ranked

    @property
    def best_settings(self) -> dict[str, tuple[TrialResult, ...]]:
        """All trials of each best setting, one a seed, by the name of its data set and attack; "" for one."""
        one = {"": self.best} if self.best is not None else {}
        trials = {trial.id: trial for trial in self.trials}
        chosen = self.choices if len(self.by_group) > 1 else one
        return {name: self._alike(trials[best]) for name, best in chosen.items() if best in trials}

    def _alike(self, one: TrialResult) -> tuple[TrialResult, ...]:
        """Return the trials that differ from one in nothing but the seed."""
        own = one.setting
        return tuple([t for t in self.trials if t.is_baseline == one.is_baseline and t.setting == own])

    @property
    def chosen(self) -> frozenset[str]:
        """Ids of the best settings, one of each row that a table marks."""
        return frozenset(filter(None, (self.best, *self.choices.values())))

    def summary(self) -> dict[str, Any]:
        """Return counts of trials by status, of stages computed and shared, seconds and bytes of results."""
        uses = [use for trial in self.trials for use in trial.stages.values()]
        return {
            "trials": len(self.trials),
            "status": dict(sorted(Counter(trial.status for trial in self.trials).items())),
            "stages_computed": sum(use.computed for use in uses),
            "stages_shared": sum(not use.computed for use in uses),
            "seconds_computed": sum(trial.computed_seconds for trial in self.trials),
            "seconds_saved": sum(trial.saved_seconds for trial in self.trials),
            "bytes_written": sum(use.bytes for use in uses if use.computed),
            "bytes_read": sum(use.read for use in uses),
            "bytes_fetched": sum(use.fetched for use in uses),
            "bytes_served": sum(use.served for use in uses),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune sweep --json` prints."""
        return {
            "sweep": self.sweep,
            "trials": [trial.to_json() for trial in self.trials],
            "best": self.best,
            "best_by_group": [{**vars(group), "params": dict(group.params)} for group in self.by_group],
            "best_over_groups": [
                {**vars(best), "trials": list(best.trials), "skipped": list(best.skipped)}
                for best in self.overall
            ],
            "select": {"metric": self.metric, "mode": self.mode, "over": self.over},
            "oracle": [vars(read).copy() for read in self.oracle],
            "summary": self.summary(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SweepResult:
        """Return the sweep that `to_json` wrote; raises `ValueError` for another shape.

        What an earlier version wrote has one best trial, and does not say what read test data but the rule.
        """
        try:
            trials = tuple(TrialResult.from_json(trial) for trial in value["trials"])
            select = value["select"]
            metric, over = select["metric"], select.get("over", "each")
            rule = [{"reader": "select", "read": metric}] if is_oracle(metric) else []
            return cls(
                value["sweep"],
                trials,
                value["best"],
                metric,
                select["mode"],
                over,
                tuple(GroupBest(**group) for group in value.get("best_by_group", ())),
                tuple(_overall(best) for best in value.get("best_over_groups", ())),
                tuple(OracleRead(**read) for read in value.get("oracle", rule)),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a sweep's result: {error}") from error


def _overall(value: Mapping[str, Any]) -> OverallBest:
    return OverallBest(**{**value, "trials": tuple(value["trials"]), "skipped": tuple(value["skipped"])})


def show(value: Scalar) -> str:
    """Return a parameter's value as people write it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _number(number: float | None) -> float:
    return math.nan if number is None else float(number)

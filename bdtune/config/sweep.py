"""A sweep: one base trial and what is varied around it.

    grid:    {defense.beta_nd: [0.6, 1.5], attack: [badnets, blend]}   every combination
    zip:     {attack.rate: [0.05, 0.1], defense.alpha_c: [0.4, 0.3]}   values taken together, in step
    vary:    {defense.beta_d: [0.01, 0.1], defense.lambda: [0.65]}     the base, then one factor at a time
    seeds:   [0, 1, 2]                                                 every point once per seed
    when:    [{if: {attack: blend}, grid: {attack.ratio: [0.1, 0.2]}}] more axes for some points only
    exclude: [{defense.beta_nd: 0.6, attack: blend}]                   points that are left out

These combine: the points are grid x zip x vary x seeds, each extended by the `when` entries that it meets,
without the excluded ones. In `if` and `exclude` all settings of an entry must be met; a list of values means
any of them; a plugin stands for its name. Values of `vary` that equal the base's are the base itself.

`search` replaces all of them: an adaptive sampler draws points from `space`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from bdtune.config.at_hand import Absent
from bdtune.config.trial import TrialSpec, spec_to_dict
from bdtune.knobs import Knobs, absolute
from bdtune.metrics import Mode
from bdtune.plugins.metric import better
from bdtune.tuning.samplers import SAMPLERS
from bdtune.tuning.schedulers import SchedulerKnobs

if TYPE_CHECKING:
    from collections.abc import Iterable

Over = Literal["each", "mean", "worst"]
"""Over several data sets and attacks: a best setting of each, or one by its mean or its worst value."""
Kept = Literal["model", "verdicts"]
"""Files of each trial that MLflow may get: the classifier's weights, what the defense's diagnosis reads."""
Axes = dict[str, tuple[Any, ...]]
"""Dotted path -> values."""


class Select(Knobs):
    """By which metric the best setting is chosen."""

    metric: str = "oracle_der"
    mode: Mode = "max"
    """Unless given, what is better for the metric."""
    over: Over = "each"
    """Several data sets or attacks: a best setting of each, or one: best in mean, or in its worst case."""

    @model_validator(mode="before")
    @classmethod
    def _fill_mode(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and isinstance(raw.get("metric"), str):
            return {"mode": better(raw["metric"]), **raw}
        return raw


class Domain(Knobs):
    """What a searched setting may be: an interval (both ends included), or a choice of values."""

    kind: Literal["uniform", "log_uniform", "int", "choice"]
    values: tuple[Any, ...]


class Search(Knobs):
    """Adaptive or random search, in place of a finite grid."""

    sampler: Annotated[str, AfterValidator(SAMPLERS.check)] = "tpe"
    trials: int = Field(ge=1, le=100_000)
    metric: tuple[str, ...] = ()
    """One objective or several; unless given, that of `select`."""
    mode: tuple[Mode, ...] = ()
    space: dict[str, Domain] = Field(min_length=1)
    seed: int = Field(0, ge=0)
    """Seed of the sampler."""

    @model_validator(mode="after")
    def _modes_match(self) -> Search:
        if len(self.mode) != len(self.metric):
            got = f"{len(self.mode)} for {len(self.metric)}"
            raise ValueError(f"expected one mode for each metric, got {got}")
        return self


def spelled_out(raw: Any) -> Any:
    """Return a search as `Search` reads it: objectives as lists with their modes, each domain by its kind."""
    if not isinstance(raw, dict):
        return raw
    raw = dict(raw)
    for key in {"metric", "mode"} & raw.keys():
        raw[key] = [raw[key]] if isinstance(raw[key], str) else raw[key]
    if "mode" not in raw and isinstance(raw.get("metric"), list):
        raw["mode"] = [better(str(metric)) for metric in raw["metric"]]
    if isinstance(raw.get("space"), dict):
        raw["space"] = {path: _domain(value) for path, value in raw["space"].items()}
    return raw


def _domain(raw: Any) -> Any:
    """Turn `{uniform: [a, b]}` into a domain's fields."""
    if isinstance(raw, dict) and len(raw) == 1 and isinstance(values := next(iter(raw.values())), list):
        return {"kind": next(iter(raw)), "values": values}
    return raw


class Resources(Knobs):
    """What one trial occupies."""

    cpu: float = Field(1.0, gt=0)
    gpu: float = Field(0.0, ge=0)
    """A fraction lets trials share a GPU."""

    @field_validator("gpu")
    @classmethod
    def _whole_above_one(cls, gpu: float) -> float:
        if gpu > 1 and not gpu.is_integer():
            raise ValueError(f"expected a fraction of one GPU or a whole number of them, got {gpu:g}")
        return gpu


class GivenSpeed(Knobs):
    """How fast the device of a trial trains, for estimates where none was measured."""

    images_per_s: float = Field(gt=0)
    """Images of 32x32 pixels in three colours that a training of ResNet-18 (width 64) takes in a second.
    Trainings and passes of other networks and image sizes are scaled by their multiplications."""


class Published(Knobs):
    """A published number, printed beside ours: rates as fractions."""

    params: dict[str, Any] = Field(default_factory=dict)
    """Settings, by dotted path, whose trials it stands beside."""
    metrics: dict[str, float] = Field(min_length=1)
    source: str = Field(min_length=1)


class TableLayout(Knobs):
    """The shape of a sweep's table: settings as rows and columns, metrics in its cells.

    `attack` and `dataset` stand for the plugin with its knobs that vary, `defense` for its name.
    """

    rows: tuple[str, ...] = ()
    """Settings by dotted path; unless rows or columns are given, they follow from what varies."""
    columns: tuple[str, ...] = ()
    cells: tuple[str, ...] = Field(("acc", "asr"), min_length=1)
    """Metrics of a cell."""
    of: Literal["best", "mean"] = "best"
    """Of several settings in a cell: the best one by `select`, or the mean over them."""
    summary: tuple[Literal["mean", "worst"], ...] = ()
    """Further rows: the mean or the worst value over the attacks of each first row setting."""
    undefended: bool = True
    """Whether undefended models have a column, or a row, of their own."""
    percent: bool = False
    """Write fractions as percentages."""
    caption: str = ""


class When(Knobs):
    """Axes that only the points which meet a condition have."""

    model_config = ConfigDict(populate_by_name=True)

    condition: dict[str, Any] = Field(alias="if", min_length=1)
    grid: Axes = Field(min_length=1)


def safe_name(name: str) -> str:
    """Return a name that can be a folder's; raises `ValueError` for any other."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ValueError(f"expected at most 100 letters, digits, '.', '_' or '-', got '{name}'")
    return name


class SweepSettings(Knobs):
    """What a sweep says beside its trials."""

    name: str = "sweep"
    description: str = ""
    search: Search | None = None
    select: Select = Select()
    scheduler: SerializeAsAny[SchedulerKnobs] = SchedulerKnobs()
    """What stops trials early that do badly, judged after each epoch of the classifier's last training."""
    resources: Resources = Resources()
    speed: GivenSpeed | None = None
    """Unless given, this machine's is measured; a stage that the store has seen counts as long as it took."""
    retries: int = Field(1, ge=0, le=100)
    """How often a trial whose process died is started again at once; then it waits, longer each time."""
    published: tuple[Published, ...] = ()
    """In a file also tables, see `bdtune.config.published`."""
    notes: tuple[str, ...] = ()
    """What a reader of its plan and report should know: what a paper leaves open, what is left out."""
    table: TableLayout | None = None
    """The shape of the table that a report adds; it changes no result."""
    keep: tuple[Kept, ...] = ()
    """What MLflow gets of each trial as files, besides its pictures."""
    weights_gb: float | None = Field(20.0, ge=0, allow_inf_nan=False)
    """Gigabytes of evaluated classifiers' weights that stay beside those of the best; null: all stay."""

    @field_validator("name")
    @classmethod
    def _is_safe(cls, name: str) -> str:
        """A sweep's name becomes a folder."""
        return safe_name(name)


class SweepSpec(SweepSettings):
    """A checked sweep."""

    trial: TrialSpec
    grid: Axes = Field(default_factory=dict)
    zip: tuple[Axes, ...] = ()
    vary: Axes = Field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    when: tuple[When, ...] = ()
    exclude: tuple[dict[str, Any], ...] = ()

    _points: tuple[TrialSpec, ...] | None = PrivateAttr(None)
    _absent: tuple[Absent, ...] = PrivateAttr(())

    @property
    def absent(self) -> tuple[Absent, ...]:
        """The data sets that are not there and whose trials are left out, where only a part was asked for."""
        return self._absent

    @property
    def objectives(self) -> tuple[tuple[str, Mode], ...]:
        """What the sweep improves, as (metric, mode): one or several for a search, else that of `select`."""
        if self.search is not None:
            return tuple(zip(self.search.metric, self.search.mode, strict=True))
        return ((self.select.metric, self.select.mode),)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where trials compute whose numerics leave it open."""
        return "cuda" if self.resources.gpu else "cpu"

    def axis_paths(self) -> list[str]:
        """Return the dotted paths that differ between trials, in the order of the file's sections."""
        sections: list[Iterable[str]] = [self.grid, *self.zip, self.vary]
        sections += [entry.grid for entry in self.when]
        sections += [self.search.space if self.search else (), ("seed",) if self.seeds else ()]
        return list(dict.fromkeys(path for section in sections for path in section))


def with_points(spec: SweepSpec, points: tuple[TrialSpec, ...], absent: tuple[Absent, ...]) -> SweepSpec:
    """Return a finite sweep with some of its trials; `absent` says what the others lack."""
    changed = spec.model_copy()
    changed._points, changed._absent = points, absent
    return changed


def sweep_to_dict(spec: SweepSpec) -> dict[str, Any]:
    """Return a sweep as JSON-able values that can be written as YAML and read again, every knob included."""
    values = spec.model_dump(mode="json", by_alias=True, exclude={"trial", "search"}, exclude_defaults=True)
    if spec.search is not None:
        search = spec.search.model_dump(mode="json", by_alias=True)
        search["space"] = {path: {d["kind"]: d["values"]} for path, d in search["space"].items()}
        values["search"] = search
    if files := _user_files(spec):
        values = {key: _settled(value, files) for key, value in values.items()}
    return {"name": spec.name, "trial": spec_to_dict(spec.trial), **values}


def _user_files(spec: SweepSpec) -> set[Path]:
    """Return the files that trials of a finite sweep name; their paths are absolute."""
    attacks = {trial.attack for trial in spec._points or ()} - {None}
    return {value for attack in attacks for value in vars(attack).values() if isinstance(value, Path)}


def _settled(raw: Any, files: set[Path]) -> Any:
    """Return axes in which those files have absolute paths, so that another folder can read them."""
    if isinstance(raw, dict):
        return {key: _settled(value, files) for key, value in raw.items()}
    if isinstance(raw, list | tuple):
        return [_settled(value, files) for value in raw]
    return str(path) if isinstance(raw, str) and (path := absolute(Path(raw))) in files else raw

"""A campaign: several sweeps that are planned, run, resumed and told as one.

    name: appendix
    sweeps:
      - paper/gssd_k1                                    # a shipped search space
      - mine.yaml                                        # a file beside this one
      - {sweep: paper/gssd_k3, set: {seeds: [0, 1]}}     # with other settings
      - {name: rates, trial: {...}, grid: {...}}         # written out
    set: {data_root: /data}                              # settings of all sweeps
    first: [gssd_k3]                                     # sweeps by name, in this order before the others
    budget: 100                                          # hours of stages; what does not fit is left out
    resources: {cpu: 1, gpu: 0.5}                        # of every trial
    table: {rows: [attack], columns: [defense]}          # a table over all sweeps; or a list of tables

Only sweeps of known trials belong in a campaign: a search or a scheduler decides by what it alone has seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, field_validator

from bdtune.checking import check_each, show, unknown
from bdtune.config.at_hand import parted
from bdtune.config.document import Document, part_of
from bdtune.config.expand import points
from bdtune.config.load import SWEEPS, Named, load_sweep, read_file, shown
from bdtune.config.overrides import apply_overrides
from bdtune.config.read_sweep import read_sweep
from bdtune.config.sweep import (
    GivenSpeed,
    Resources,
    Select,
    SweepSpec,
    TableLayout,
    safe_name,
    sweep_to_dict,
    with_points,
)
from bdtune.config.table_layout import layout_problems
from bdtune.config.yaml_file import YamlText, parse_value
from bdtune.errors import ConfigError, Problem, nearest
from bdtune.knobs import Knobs
from bdtune.metrics import STABLE, is_oracle
from bdtune.plugins.metric import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bdtune.config.at_hand import Absent


class CampaignTable(TableLayout):
    """A table of a campaign: its cells hold trials of several sweeps."""

    name: str = ""
    """Part of its files' names, `table-<name>.tex`; without a name they are called `table.tex`."""
    sweeps: tuple[str, ...] = ()
    """Sweeps whose trials it shows, by name; none: all. Of one sweep, that sweep's own `table` fills in what
    is not given here."""
    select: Select | None = None
    """The rule by which the best of several settings is chosen; None: that of the sweeps if they all have one
    rule, else `oracle_der`."""

    @field_validator("name")
    @classmethod
    def _is_safe(cls, name: str) -> str:
        """A table's name is part of a file's."""
        return safe_name(name) if name else name

    @field_validator("select", mode="before")
    @classmethod
    def _spell_out(cls, raw: Any) -> Any:
        """Accept a rule's name in place of a mapping, as a sweep does."""
        return {"metric": raw} if isinstance(raw, str) else raw

    @property
    def stem(self) -> str:
        """Its files' name without the ending."""
        return f"table-{self.name}" if self.name else "table"


class CampaignSettings(Knobs):
    """What a campaign says beside its sweeps."""

    name: str = "campaign"
    description: str = ""
    first: tuple[str, ...] = ()
    """Sweeps whose trials start before all others, by name."""
    budget: float | None = Field(None, gt=0)
    """Most hours of stages, as `bdtune plan` counts them; None: all that is asked for."""
    resources: Resources | None = None
    """What one trial occupies; None: the most that one of the sweeps asks for."""
    table: tuple[CampaignTable, ...] = ()
    """Tables over the trials of its sweeps; in a file also one table alone."""

    @field_validator("name")
    @classmethod
    def _is_safe(cls, name: str) -> str:
        """A campaign's name becomes a folder."""
        return safe_name(name)


@dataclass(frozen=True)
class Campaign:
    """A checked campaign: its sweeps have their trials, and all the same resources."""

    settings: CampaignSettings
    sweeps: tuple[SweepSpec, ...]
    """In the order in which their trials start."""
    absent: tuple[tuple[str, Absent], ...] = ()
    """What was left out as its data set is not there, with the sweep's name."""

    @property
    def name(self) -> str:
        """The campaign's name."""
        return self.settings.name

    @property
    def resources(self) -> Resources:
        """What one trial occupies."""
        return self.sweeps[0].resources

    @property
    def speed(self) -> GivenSpeed | None:
        """How fast a trial trains as the user says: where sweeps say different things, the slowest."""
        given = [spec.speed for spec in self.sweeps if spec.speed is not None]
        return min(given, key=lambda speed: speed.images_per_s, default=None)

    @property
    def tables(self) -> tuple[CampaignTable, ...]:
        """Its tables, with what they take from the tables of sweeps filled in."""
        return self.settings.table

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that can be written as YAML and read again, with every sweep written out."""
        settings = self.settings.model_dump(mode="json", exclude_none=True)
        return {**settings, SWEEPS: [sweep_to_dict(spec) for spec in self.sweeps]}


def is_campaign(path_or_name: Named | None) -> bool:
    """Return whether a file, or a shipped space, is a campaign; False where it cannot be read."""
    if path_or_name is None:
        return False
    try:
        return read_file(path_or_name).holds_sweeps
    except ConfigError:
        return False


def load_campaign(
    path_or_name: Named, overrides: Sequence[str] = (), *, check_data: bool = True, partial: bool = False
) -> Campaign:
    """Load a campaign, with the trials of all its sweeps checked; raises `ConfigError` with all problems.

    `overrides` are the campaign's own settings (`budget=10`) or hold for all its sweeps (`seed=0`).
    `check_data=False` does not look whether the data sets are there; `partial=True` leaves out the trials of
    those that are not, and sweeps that have no others.
    """
    read = read_file(path_or_name)
    reader = _Reader(read.file, read.text, {"check_data": check_data, "partial": partial})
    return reader.campaign(overrides)


class _Reader:
    """Reads one file and notes what is wrong with it."""

    def __init__(self, file: Path, text: YamlText, looking: dict[str, bool]) -> None:
        self.file, self.text, self.looking = file, text, looking
        self.absent: list[tuple[str, Absent]] = []
        self.problems = list(text.problems)
        self.data: dict[str, Any] = text.data if isinstance(text.data, dict) else {}

    def campaign(self, overrides: Sequence[str]) -> Campaign:
        own = {word.partition("=")[0].strip() for word in overrides} & CampaignSettings.model_fields.keys()
        words = [word for word in overrides if word.partition("=")[0].strip() not in own]
        settings = self._settings([word for word in overrides if word not in words])
        common = _words(self._mapping("set"))
        sweeps = list(self._sweeps([*common, *words]))
        self._distinct(sweeps)
        self._named("first", settings.get("first", ()), sweeps)
        tables = self._tables(settings.get("table", ()), sweeps, [*common, *words])
        if self.problems:
            raise ConfigError(self.problems)
        read = CampaignSettings(**{**settings, "table": tables})
        if not sweeps:
            raise ConfigError([each.problem for _, each in self.absent])
        return Campaign(read, _ordered(read, sweeps), tuple(self.absent))

    def _settings(self, words: Sequence[str]) -> dict[str, Any]:
        """Return the campaign's own settings, where they are right."""
        raw = {"name": self.file.stem, **{key: self.data[key] for key in self._own_keys()}}
        if self._one_table:
            raw["table"] = [raw["table"]]
        for word in words:
            key, _, value = word.partition("=")
            try:
                values = parse_value(value)
                raw[key.strip()] = values if key.strip() == "first" and values != [[]] else values[0]
            except (ValueError, IndexError):
                self._wrong(key, "expected a value after '='", show(value), where=f"command line: {word}")
        settings, problems = check_each(CampaignSettings, raw, "the campaign")
        if self._one_table:
            problems = [replace(each, path=each.path.replace("table[0]", "table", 1)) for each in problems]
        self.problems += [problem.at(self._line(problem.path)) for problem in problems]
        return settings

    @property
    def _one_table(self) -> bool:
        """Whether `table` is one table, not a list of them."""
        return isinstance(self.data.get("table"), dict)

    def _own_keys(self) -> list[str]:
        known = [*CampaignSettings.model_fields, SWEEPS, "set"]
        for key in self.data.keys() - set(known):
            self.problems.append(unknown(key, "", known, "a setting of a campaign").at(self._line(key)))
        return [key for key in CampaignSettings.model_fields if key in self.data]

    def _sweeps(self, words: Sequence[str]) -> Iterator[SweepSpec]:
        entries = self.data.get(SWEEPS)
        if not isinstance(entries, list) or not entries:
            expected = "expected a list of search spaces, files, or sweeps that are written out"
            self._wrong(SWEEPS, expected, show(entries))
            return
        for index, entry in enumerate(entries):
            path = f"{SWEEPS}[{index}]"
            try:
                spec = self._sweep(path, entry, words)
            except ConfigError as error:
                self.problems += [self._placed(path, problem) for problem in error.problems]
                continue
            if spec.search is not None or spec.scheduler.judges:
                what = "a search" if spec.search is not None else "a scheduler"
                hint = "Run it by itself, with 'bdtune sweep'"
                self._wrong(path, "expected a sweep without a search and a scheduler", f"{what}", hint)
                continue
            self.absent += [(spec.name, each) for each in spec.absent]
            if points(spec):
                yield spec

    def _sweep(self, path: str, entry: Any, words: Sequence[str]) -> SweepSpec:
        """Return a sweep; if that may be, one of whose data sets none is there has no trials."""
        try:
            return self._read(path, entry, words, **self.looking)
        except ConfigError:
            if not self.looking["partial"]:
                raise
            spec = self._read(path, entry, words, check_data=False, partial=False)
            present, absent = parted(points(spec))
            if present:  # something else is wrong
                raise
            return with_points(spec, (), absent)

    def _read(self, path: str, entry: Any, words: Sequence[str], **looking: bool) -> SweepSpec:
        if isinstance(entry, str):
            return load_sweep(self._beside(entry), words, **looking)
        if not isinstance(entry, dict):
            expected = "expected a search space, a file, {sweep: NAME, set: {...}}, or a sweep written out"
            raise ConfigError(Problem("", expected, show(entry)))
        if "sweep" in entry:
            for key in entry.keys() - {"sweep", "set"}:
                raise ConfigError(unknown(key, "", ["sweep", "set"], "a key beside 'sweep'"))
            own = _words(self._mapping("set", entry, path))
            return load_sweep(self._beside(entry["sweep"]), [*own, *words], **looking)
        document: Document = part_of(self.text, path, entry, shown(self.file), self.file.parent)
        apply_overrides(document, words)
        return read_sweep(document, f"{self.file.stem}-{path[len(SWEEPS) + 1 : -1]}", **looking)

    def _beside(self, name: Any) -> str:
        """Return a file that lies beside the campaign's, else the name as it stands."""
        beside = self.file.parent / str(name)
        return str(beside) if beside.suffix in (".yaml", ".yml") and beside.is_file() else str(name)

    def _mapping(self, key: str, entry: Mapping[str, Any] | None = None, parent: str = "") -> dict[str, Any]:
        value = (self.data if entry is None else entry).get(key) or {}
        if not isinstance(value, dict):
            self._wrong(f"{parent}.{key}" if parent else key, "expected a mapping of settings", show(value))
            return {}
        return value

    def _distinct(self, sweeps: Sequence[SweepSpec]) -> None:
        names = [spec.name for spec in sweeps]
        for name in dict.fromkeys(name for name in names if names.count(name) > 1):
            hint = f"Call one of them {name}-2: {{sweep: ..., set: {{name: {name}-2}}}}"
            self._wrong(SWEEPS, "expected a name for each sweep", f"'{name}' {names.count(name)} times", hint)

    def _named(self, path: str, names: Sequence[str], sweeps: Sequence[SweepSpec]) -> None:
        known = list(dict.fromkeys([*(spec.name for spec in sweeps), *(name for name, _ in self.absent)]))
        for index, name in enumerate(names):
            if name not in known:
                expected = f"expected a sweep of this campaign: {', '.join(known)}"
                self._wrong(f"{path}[{index}]", expected, show(name), nearest(name, known))

    def _tables(
        self, tables: Sequence[CampaignTable], sweeps: Sequence[SweepSpec], words: Sequence[str]
    ) -> list[CampaignTable]:
        """Return the tables whose sweeps have trials, each with its whole layout."""
        found, stems = [], [table.stem for table in tables]
        overridden = [word.partition("=")[0].strip() for word in words]
        for index, table in enumerate(tables):
            path = "table" if self._one_table else f"table[{index}]"
            self._named(f"{path}.sweeps", table.sweeps, sweeps)
            if table.stem in stems[:index]:
                self._wrong(path, "expected a name of its own for each table", show(table.name))
            self._ruled(path, table)
            own = [spec for spec in sweeps if spec.name in (table.sweeps or (spec.name,))]
            whole = _filled_in(table, own)
            trials = [] if self.absent else [trial for spec in own for trial in points(spec)]
            for problem in layout_problems(whole, path, trials, overridden):
                self.problems.append(problem.at(self._line(problem.path)))
            found += [whole] if own else []
        return found

    def _ruled(self, path: str, table: CampaignTable) -> None:
        """Note a rule that reads no metric; those that only a defense measures are let through."""
        rule = table.select.metric if table.select else Select().metric
        rules = [metric.rule for metric in METRICS.own.values() if metric.role != "report"]
        if rule.removesuffix(STABLE) not in rules and not (is_oracle(rule) and "/" in rule):
            expected = f"expected one of the rules: {', '.join(rules)}"
            self._wrong(f"{path}.select", expected, show(rule), nearest(rule, rules))

    def _placed(self, path: str, problem: Problem) -> Problem:
        """Return a sweep's problem with the place in this file that led to it."""
        in_a_file = re.fullmatch(r".+:\d+", problem.where) and not problem.where.startswith("command line")
        return problem if in_a_file else replace(problem.under(path), where=self._line(path))

    def _wrong(self, path: str, expected: str, got: str = "", hint: str = "", where: str = "") -> None:
        self.problems.append(Problem(path, expected, got, where or self._line(path), hint))

    def _line(self, path: str) -> str:
        """Return `file:line` of a dotted path, or of the nearest part that it lies in."""
        while path and path not in self.text.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        line = f":{self.text.lines[path]}" if path else ""
        return f"{shown(self.file)}{line}"


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as the words of a command line that set them: a list is one value."""
    return [f"{path}={_flow(value)}" for path, value in settings.items()]


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("\n").removesuffix("\n...")


def _filled_in(table: CampaignTable, sweeps: Sequence[SweepSpec]) -> CampaignTable:
    """Return a table of one sweep with that sweep's own layout where it does not give one."""
    own = sweeps[0].table if len(sweeps) == 1 else None
    if own is None or not table.sweeps:
        return table
    given = table.model_fields_set
    shape = {"rows", "columns"} & given
    taken = [name for name in TableLayout.model_fields if name not in given]
    taken = [name for name in taken if not (shape and name in ("rows", "columns"))]  # they belong together
    return table.model_copy(update={name: getattr(own, name) for name in taken})


def _ordered(settings: CampaignSettings, sweeps: Sequence[SweepSpec]) -> tuple[SweepSpec, ...]:
    """Return the sweeps in the order of their start, all with the resources that fit each of them."""
    most = Resources(
        cpu=max(spec.resources.cpu for spec in sweeps), gpu=max(spec.resources.gpu for spec in sweeps)
    )
    ranks = {name: rank for rank, name in enumerate(settings.first)}
    ordered = sorted(sweeps, key=lambda spec: ranks.get(spec.name, len(ranks)))
    return tuple(spec.model_copy(update={"resources": settings.resources or most}) for spec in ordered)


def renamed(spec: SweepSpec, name: str) -> SweepSpec:
    """Return the same sweep under another name."""
    return spec.model_copy(update={"name": name})

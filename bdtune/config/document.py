"""What a user wrote, from a file and the command line together, and where each part of it came from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdtune.checking import show, unknown
from bdtune.config.attack_field import RIVALS, with_knobs
from bdtune.config.sweep import SweepSpec
from bdtune.config.trial import PLUGIN_KINDS, TRIAL_KEYS, TrialSpec
from bdtune.errors import MOST_PROBLEMS, ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.config.yaml_file import YamlText

SWEEP_KEYS = tuple(name for name in SweepSpec.model_fields if name != "trial")


@dataclass(frozen=True, order=True)
class Origin:
    """Where something was written; the rank gives the order in which problems are shown."""

    rank: tuple[int, int]
    where: str


@dataclass
class Document:
    """A trial or sweep as plain values: `trial` holds what stands under `trial:`, `sweep` the rest.

    Dotted paths name a trial's knobs without `trial.`, as on the command line.
    """

    trial: dict[str, Any] = field(default_factory=dict)
    sweep: dict[str, Any] = field(default_factory=dict)
    name: str = "command line"
    folder: Path = Path()
    """Where files that it names are found from."""
    origins: dict[str, Origin] = field(default_factory=dict)
    found: list[tuple[Origin, Problem]] = field(default_factory=list)
    overridden: set[str] = field(default_factory=set)
    """The trial's settings that the command line fixes or sweeps in place of the file."""
    unread: set[str] = field(default_factory=set)
    """Settings to which a word of the command line gave no value: what lacks it is not wrong too."""

    def origin(self, path: str) -> Origin:
        """Return where a path, or the nearest part of a document that it lies in, was written."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.origins.get("", Origin((0, 0), self.name))

    def report(self, problem: Problem, at: Origin | None = None) -> None:
        """Add a problem, with the place where its path was written; the same one is added once.

        Raises `ConfigError` when there are so many that looking for more helps nobody.
        """
        origin = at or self.origin(problem.path)
        problem = problem.at(origin.where)
        if at is None and _setting_of(problem.path) in self.unread:
            return
        if any(origin == other and _alike(problem, known) for other, known in self.found):
            return
        self.found.append((origin, problem))
        if len(self.found) >= MOST_PROBLEMS:
            self.finish()

    def wrong(
        self, path: str, expected: str, got: str = "", hint: str = "", at: Origin | None = None
    ) -> None:
        """Add a problem at a dotted path; `at` is where it was written, if not there."""
        self.report(Problem(path, expected, got, hint=hint), at)

    def finish(self) -> None:
        """Raise all problems at once, in the order of the file, then of the command line."""
        if self.found:
            raise ConfigError([problem for _, problem in sorted(self.found, key=lambda item: item[0].rank)])

    def moved(self, path: str, origin: Origin) -> None:
        """Note that a path and all below it were written anew at `origin`."""
        for known in [p for p in self.origins if p.startswith((f"{path}.", f"{path}["))]:
            del self.origins[known]
        self.origins[path] = origin


def _setting_of(path: str) -> str:
    """Return the setting that a problem's path is about: "attack" of "grid.attack.rate[1]"."""
    inner = re.sub(r"^(grid|vary|zip(\[\d+\])?|search\.space|when\[\d+\]\.grid)\.", "", path)
    return re.split(r"[.[]", inner)[0]


def _alike(one: Problem, other: Problem) -> bool:
    """Whether two problems of one place are one to the user: a word of the command line may set two paths."""
    from_word = one.where.startswith("command line")
    return one == other or (from_word and (one.expected, one.got) == (other.expected, other.got))


def document_of(text: YamlText, shown_as: str, folder: Path) -> Document:
    """Sort the keys of a file that was read; unknown keys are noted in the document.

    `folder` is the file's own. Raises `ConfigError` when the file is no YAML, or no mapping.
    """
    document = Document(name=shown_as, folder=folder)
    _note_origins(document, text.lines)
    for problem in text.problems[:MOST_PROBLEMS]:
        line = int(problem.where.rpartition(":")[2]) if problem.where != shown_as else 0
        document.found.append((Origin((0, line), problem.where), problem))
    if not isinstance(text.data, dict):
        if not text.problems:
            got = "an empty file" if text.data is None else show(text.data)
            document.wrong("", "expected settings such as 'dataset: digits'", got)
        document.finish()
    _sort_keys(document, text.data)
    return document


def part_of(text: YamlText, path: str, data: dict[str, Any], shown_as: str, folder: Path) -> Document:
    """Return the sweep that a file in a folder holds at a dotted path; `data` is what stands there."""
    document = Document(name=f"{shown_as}:{text.lines.get(path, 1)}", folder=folder)
    below = {known: line for known, line in text.lines.items() if known.startswith(f"{path}.")}
    _note_origins(document, {known.removeprefix(f"{path}."): line for known, line in below.items()}, shown_as)
    _sort_keys(document, data)
    return document


def _note_origins(document: Document, lines: Mapping[str, int], shown_as: str = "") -> None:
    for path, line in lines.items():
        place = Origin((0, line), f"{shown_as or document.name}:{line}")
        short = _today(path).removeprefix("trial.")
        document.origins[short if short.partition(".")[0] in TRIAL_KEYS else _today(path)] = place


def _today(path: str) -> str:
    """Return a path with the name that its first setting has today; `reference` is accepted until 0.3."""
    return re.sub(r"^reference\b", "published", path)


def _sort_keys(document: Document, data: dict[str, Any]) -> None:
    nested = data.get("trial")
    for key, value in data.items():
        if key.partition(".")[0] in TRIAL_KEYS:
            if nested is None:
                put(document, key, value)
            else:
                document.wrong(key, "expected the trial's settings under 'trial:'", f"'{key}' beside it")
        elif _today(key) in SWEEP_KEYS:
            document.sweep[_today(key)] = value
        elif key != "trial":
            document.report(unknown(key, "", ["trial", *TRIAL_KEYS, *SWEEP_KEYS], "a setting", most=64))
    if nested is not None:
        _sort_trial(document, nested)


def _sort_trial(document: Document, nested: Any) -> None:
    if not isinstance(nested, dict):
        document.wrong("trial", "expected a mapping with the trial's settings", show(nested))
        return
    for key, value in nested.items():
        if key.partition(".")[0] in TRIAL_KEYS:
            put(document, key, value)
        else:
            document.report(unknown(key, "trial", TRIAL_KEYS, "a setting of the trial"))


def put(document: Document, path: str, value: Any) -> None:
    """Set a trial's setting from a file, where a dotted key (`simclr.epochs: 5`) means a nested one."""
    if isinstance(value, dict):
        here = _nested(document.trial, path.split("."), {})
        for key, inner in value.items():
            if isinstance(here, dict):
                put(document, f"{path}.{key}", inner)
    else:
        _nested(document.trial, path.split("."), value)


def _nested(target: dict[str, Any], parts: list[str], value: Any) -> Any:
    for part in parts[:-1]:
        inner = target.get(part)
        if not isinstance(inner, dict):
            inner = {} if inner is None else {"name": inner}
        target[part] = inner
        target = inner
    if value == {} and isinstance(target.get(parts[-1]), dict):
        return target[parts[-1]]
    target[parts[-1]] = value
    return value


def assign(trial: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a trial's settings with one dotted path set.

    Naming another plugin (`dataset=cifar10`) drops the knobs of the old one; naming the same keeps them.
    """
    head, _, rest = path.partition(".")
    if head in PLUGIN_KINDS:
        return {
            **trial,
            head: _assign_plugin(trial.get(head, TrialSpec.model_fields[head].default), rest, value),
        }
    if not rest:
        return {**trial, head: value}
    return {**trial, head: _assign_nested(trial.get(head), rest.split("."), value)}


def _assign_plugin(current: Any, rest: str, value: Any) -> Any:
    mapping = current if isinstance(current, dict) else {"name": "none" if current is None else current}
    if not rest:
        if not isinstance(value, str):
            return value
        return current if isinstance(current, dict) and _same_name(current.get("name"), value) else value
    if rest in ("name", "preset"):
        return mapping if _same_name(mapping.get(rest), value) else {rest: value}
    if rest in RIVALS:
        return with_knobs(mapping, {rest: value})
    return _assign_nested(mapping, rest.split("."), value)


def _same_name(one: Any, other: Any) -> bool:
    return str(one).casefold() == str(other).casefold()


def _assign_nested(current: Any, parts: list[str], value: Any) -> Any:
    if not parts:
        return value
    named = {"name": current} if isinstance(current, str) else {}  # a network inside a defense
    inner = current if isinstance(current, dict) else named
    return {**inner, parts[0]: _assign_nested(inner.get(parts[0]), parts[1:], value)}


def mapping(value: Any) -> dict[str, Any]:
    """Return a mapping as it is, and an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}

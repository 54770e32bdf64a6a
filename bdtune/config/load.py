"""Finding and loading sweeps and trials: a file, overrides, or both; all problems in one go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bdtune
from bdtune.checking import show
from bdtune.config.document import Document, document_of
from bdtune.config.overrides import apply_overrides
from bdtune.config.read_sweep import read_sweep
from bdtune.config.trial import TrialSpec, parse_trial
from bdtune.config.yaml_file import YamlText, read_yaml
from bdtune.errors import ConfigError, Problem, nearest
from bdtune.plugins.registry import Description

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bdtune.config.sweep import SweepSpec

SWEEPS = "sweeps"
"""The key by which a file is a campaign's."""
_SUFFIXES = ("", ".yaml", ".yml")


@dataclass(frozen=True)
class ReadFile:
    """A file of settings that was found and read, for whoever looks into it next."""

    file: Path
    text: YamlText

    @property
    def holds_sweeps(self) -> bool:
        """Whether the file is a campaign's; False where it could not be read."""
        return isinstance(self.text.data, dict) and SWEEPS in self.text.data


Named = str | Path | ReadFile
"""A file, the name of a shipped search space, or what was read of one."""


def read_file(path_or_name: Named) -> ReadFile:
    """Read a file or a shipped space, whose text says what is wrong; raises `ConfigError` without one."""
    if isinstance(path_or_name, ReadFile):
        return path_or_name
    file = find(path_or_name)
    return ReadFile(file, read_yaml(file, shown(file)))


def load_sweep(
    path_or_name: Named | None,
    overrides: Sequence[str] = (),
    *,
    check_data: bool = True,
    partial: bool = False,
) -> SweepSpec:
    """Load a sweep, with all its trials checked; raises `ConfigError` with all problems.

    `path_or_name`: a file, or the name of a shipped search space, with or without `.yaml`; None when the
    overrides say everything. `check_data=False` does not look whether the data sets are there;
    `partial=True` leaves out the trials of those that are not, and `SweepSpec.absent` says so.
    """
    document, name = _open(path_or_name)
    apply_overrides(document, overrides)
    return read_sweep(document, name, check_data=check_data, partial=partial)


def load_trial(
    path_or_name: Named | None, overrides: Sequence[str] = (), *, check_data: bool = True
) -> TrialSpec:
    """Load one trial from a file of its settings, or the base trial of a sweep; as `load_sweep` otherwise."""
    document, _ = _open(path_or_name)
    apply_overrides(document, overrides, axes=False)
    spec, problems = parse_trial(document.trial, check_data=check_data)
    for problem in problems:
        document.report(problem)
    document.finish()
    assert spec is not None
    return spec


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Split a command line's words into the file, where the first one is no `key=value`, and overrides."""
    if words and "=" not in words[0]:
        return words[0], list(words[1:])
    return None, list(words)


def search_spaces() -> list[Description]:
    """Return the shipped search spaces: names, descriptions, and what their published numbers are from."""
    return [space for space, holds_sweeps in _descriptions() if not holds_sweeps]


def campaigns() -> list[Description]:
    """Return the shipped campaigns, which are several sweeps each: names and descriptions."""
    return [campaign for campaign, holds_sweeps in _descriptions() if holds_sweeps]


@cache
def _descriptions() -> list[tuple[Description, bool]]:
    """Return what every shipped file describes, and whether it is a campaign's."""
    read = {name: ReadFile(file, read_yaml(file)) for name, file in sorted(_shipped().items())}
    return [(_describe(name, file.text.data), file.holds_sweeps) for name, file in read.items()]


def find(path_or_name: str | Path) -> Path:
    """Return the file that is meant; raises `ConfigError` with the nearest name when there is none."""
    for suffix in _SUFFIXES:
        file = Path(f"{path_or_name}{suffix}")
        if _is_file(file):
            return file
    shipped = _shipped()
    name = str(path_or_name).removesuffix(".yaml").removesuffix(".yml")
    alike = {key: file for key, file in shipped.items() if key.casefold() == name.casefold()}
    alike = alike or {key: file for key, file in shipped.items() if _stem(key) == name.casefold()}
    if len(alike) == 1:
        return next(iter(alike.values()))
    raise ConfigError(_no_file(path_or_name, name, shipped))


def _stem(key: str) -> str:
    return key.rpartition("/")[2].casefold()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no file can have such a name
        return False


def _no_file(path_or_name: str | Path, name: str, shipped: dict[str, Path]) -> Problem:
    """Return the problem of a file that does not exist, and of a name that no search space has."""
    here = {file.stem: file.name for file in Path().glob("*.y*ml")}
    hint = nearest(name, {**here, **shipped, **{_stem(key): key for key in shipped}})
    expected = f"expected a YAML file or one of the search spaces: {', '.join(sorted(shipped))}"
    return Problem("", expected, show(str(path_or_name)), f"no file {show(str(path_or_name))}", hint)


def _open(path_or_name: Named | None) -> tuple[Document, str]:
    if path_or_name is None:
        return Document(), "sweep"
    read = read_file(path_or_name)
    return document_of(read.text, shown(read.file), read.file.parent), read.file.stem


def shown(file: Path) -> str:
    """Return a file's name for messages: relative where it lies below the working directory."""
    absolute, here = file.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(file)


def _shipped() -> dict[str, Path]:
    package = Path(bdtune.__file__).parent
    # In a wheel the folder lies inside the package, in a checkout beside it.
    folder = package / "search_spaces"
    folder = folder if folder.is_dir() else package.parent / "search_spaces"
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in folder.rglob("*.yaml")}


def _describe(name: str, data: Any) -> Description:
    values = data if isinstance(data, dict) else {}
    published = values.get("published") or []
    sources = dict.fromkeys(str(entry.get("source", "")) for entry in published if isinstance(entry, dict))
    summary = " ".join(str(values.get("description", "")).split()).partition(". ")[0].removesuffix(".") + "."
    return Description(name, summary, "; ".join(filter(None, sources)))

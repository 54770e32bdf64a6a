"""The words of a command line: a file and settings; and data sets to be fetched before they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.config.load import ReadFile, load_sweep, load_trial, read_file, split_words
from bdtune.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bdtune.config.trial import TrialSpec


def split(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Return the file, if any, and the settings; raises `UserError` when there are neither."""
    if not words:
        raise UserError("expected a YAML file, a search space or settings, as in 'bdtune sweep gssd.yaml'")
    return split_words(words)


def sweep_file(file: str | None) -> ReadFile | None:
    """Return what was read of a sweep's file; raises `UserError` for a campaign's, which is no sweep."""
    read = None if file is None else read_file(file)
    if read is not None and read.holds_sweeps:
        raise UserError(f"{file} is a campaign, of several sweeps: 'bdtune campaign {file}' runs it")
    return read


def fetch_for_sweep(file: str | None, overrides: Sequence[str]) -> None:
    """Fetch missing data sets of a sweep's trials; raises `UserError` where that is impossible."""
    from bdtune.cluster.sweep import planned_trials

    spec = load_sweep(file, overrides, check_data=False)
    _fetch([spec.trial, *planned_trials(spec, 50)])


def fetch_for_trial(file: str | None, overrides: Sequence[str]) -> None:
    """Fetch a trial's data set if it is missing; raises `UserError` where that is impossible."""
    _fetch([load_trial(file, overrides, check_data=False)])


def _fetch(specs: Iterable[TrialSpec]) -> None:
    wanted = {(spec.dataset, spec.data_root) for spec in specs}
    for dataset, root in sorted(wanted, key=str):
        if root is not None and dataset.check(root):
            dataset.download(root)

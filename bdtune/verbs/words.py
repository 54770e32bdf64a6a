"""The words of a command line: a file and settings; and data sets to be fetched before they are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.config.campaign import is_campaign
from bdtune.config.load import load_sweep, load_trial, split_words
from bdtune.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bdtune.config.trial import TrialSpec


def split(words: Sequence[str] | None) -> tuple[str | None, list[str]]:
    """Return the file, if any, and the settings; raises `UserError` when there are neither."""
    if not words:
        raise UserError("expected a YAML file, a search space or settings, as in 'bdtune sweep gssd.yaml'")
    return split_words(words)


def refuse_campaign(file: str | None) -> None:
    """Raise `UserError` for the file of a campaign, which is no sweep."""
    if is_campaign(file):
        raise UserError(f"{file} is a campaign, of several sweeps: 'bdtune campaign {file}' runs it")


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

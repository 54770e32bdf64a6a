"""`bdtune report NAME --html`: the page of a sweep or campaign, with its figures beside it."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from bdtune.errors import Problem, UserError
from bdtune.report.campaign import merged
from bdtune.report.page.build import Inputs, write
from bdtune.report.page.campaign import CampaignInputs, write_campaign
from bdtune.trials.outcome import with_all_curves
from bdtune.verbs.stores import of_sweep

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.manifest import Manifest
    from bdtune.trials.results import SweepResult
    from bdtune.verbs.campaign import CampaignOutcome
    from bdtune.verbs.sweep_report import SweepOutcome


def written(outcome: SweepOutcome) -> list[Path]:
    """Write a report's page into its sweep's folder; return the paths of the page and of its figures.

    Raises `UserError` where the folder cannot be written.
    """
    assert outcome.folder is not None, "a report knows its folder"
    return _page(outcome.folder, outcome.spec, outcome.result, outcome.why)


def campaign_written(outcome: CampaignOutcome) -> tuple[list[Path], list[Path]]:
    """Write a campaign's page, and those of its sweeps, which it links to.

    Returns the paths of its page and figures, and of the sweeps' pages. Raises `UserError` where a folder
    cannot be written.
    """
    folder = _writable(outcome.folder)
    pages = [_page(each.folder, each.spec, each.result, each.why)[0] for each in outcome.members]
    found = _manifests(merged(outcome.name, outcome.members), folder)
    inputs = CampaignInputs(outcome.tables, outcome.summary(), len(outcome.left_out.trials), found)
    return write_campaign(inputs, folder), pages


def _page(folder: Path, spec: SweepSpec, result: SweepResult, why: Mapping[str, str]) -> list[Path]:
    pictures = sorted([*folder.glob("best-*.png"), *folder.glob("case-*.png"), *folder.glob("search-*.png")])
    manifests = _manifests(result, _writable(folder))
    curves = partial(with_all_curves, store=of_sweep(folder))
    return write(Inputs(spec, result, why, manifests, pictures, curves), folder)


def _writable(folder: Path) -> Path:
    if not os.access(folder, os.W_OK):
        raise UserError(Problem("--html", "expected a folder that can be written", str(folder)))
    return folder


def _manifests(result: SweepResult, folder: Path) -> list[Manifest]:
    """Return what the store says of the stages of all trials; of some it may know nothing any more."""
    store = of_sweep(folder)
    keys = dict.fromkeys(use.key for trial in result.trials for use in trial.stages.values())
    return [manifest for key in keys if (manifest := store.manifest(key)) is not None]

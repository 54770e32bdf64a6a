"""A sweep's report: its table, files and pictures, from what the store has."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bdtune.cluster.sweep import make_ledger
from bdtune.engine.files import file_lock
from bdtune.report import cross, files, table
from bdtune.report.groups import grouped
from bdtune.report.order import blocks
from bdtune.report.selection import cases, selected
from bdtune.trials.oracle import oracle_reads
from bdtune.verbs.ending import closing_lines, exit_code
from bdtune.verbs.home import find_sweep, settings_of
from bdtune.verbs.pictures import Gallery
from bdtune.verbs.stores import of_sweep
from bdtune.verbs.whole_sweep import whole, without_data

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec
    from bdtune.trials.ledger import Ledger
    from bdtune.trials.results import SweepResult, TrialResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepOutcome:
    """What a sweep came to, for the command line to print."""

    spec: SweepSpec
    result: SweepResult
    interrupted: bool = False
    given_up: str | None = None
    """Why some trials were given up without a result, though nothing was wrong with them."""
    tracking: str = ""
    written: Sequence[Path] = ()
    """The files of its report, in its folder."""
    latest: tuple[TrialResult, ...] = ()
    """Results of this run's own trials; an earlier run may have left others."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Why trials were not run, by id, where more is known than that they were not."""
    folder: Path | None = None
    """The sweep's folder, of a report."""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some given up, 3 some failed, 130 interrupted."""
        return exit_code(self.given_up, self.latest, interrupted=self.interrupted)

    def ending(self, out: Path | None) -> list[str]:
        """Return the lines that end a run; `out` is the run directory that the command line gave."""
        commands = ["bdtune ui", f"bdtune report {self.spec.name} --sort asr --top 10"]
        return closing_lines(self, self.written, commands, out)


def report(name: str, run_dir: Path, *, store: str | None = None, sort: str | None = None) -> SweepOutcome:
    """Return a sweep's report as the store has it now: nothing is computed.

    Raises `UserError` when no such sweep was run, or has nothing called like `sort`.
    """
    folder = find_sweep(name, run_dir)
    spec = settings_of(folder)
    ledger, _ = make_ledger(spec, of_sweep(folder, store))
    if spec.search is not None:
        return SweepOutcome(spec, _result(spec, files.read(folder).trials), folder=folder)
    if os.access(folder, os.W_OK):
        gallery = Gallery(folder / "pictures", ledger.resolver)
        result, _ = reported(folder, spec, ledger, gallery, sort=sort)
    else:
        log.warning("%s cannot be written: the report is printed only", folder)
        result = _whole_result(folder, spec, ledger, sort=sort)
    return SweepOutcome(spec, result, why=without_data(ledger), folder=folder)


def reported(
    folder: Path,
    spec: SweepSpec,
    ledger: Ledger,
    gallery: Gallery,
    latest: Sequence[TrialResult] = (),
    *,
    sort: str | None = None,
) -> tuple[SweepResult, list[Path]]:
    """Write the report of all trials that the sweep was ever asked for; returns it with its files.

    Two runs that end at once do so one after the other, as the second one's report holds the first one's.
    """
    with file_lock(folder / ".report.lock"):
        result = _whole_result(folder, spec, ledger, latest, sort=sort)  # before anything is written
        shaped = _shaped(spec, result, ledger) if spec.table else None
        written = files.write(folder, result, paper=spec.published, notes=spec.notes, shaped=shaped)
        written += _pictures_of_best(result, ledger, gallery, folder)
        if spec.search is not None:
            from bdtune.verbs import search_pictures  # loads optuna

            written += search_pictures.draw(spec, folder)
    return result, written


def _whole_result(
    folder: Path,
    spec: SweepSpec,
    ledger: Ledger,
    latest: Sequence[TrialResult] = (),
    *,
    sort: str | None = None,
) -> SweepResult:
    """Return all trials of a sweep; raises `UserError` where they have nothing called like `sort`."""
    result = _result(spec, whole(folder, spec, ledger, latest))
    if sort is not None:
        blocks(grouped(result.trials), result, sort)
    return result


def _shaped(spec: SweepSpec, result: SweepResult, ledger: Ledger) -> cross.CrossTable:
    return cross.build(result, spec.table, published=spec.published, why=without_data(ledger))


def _pictures_of_best(result: SweepResult, ledger: Ledger, gallery: Gallery, folder: Path) -> list[Path]:
    """Leave the best trials' pictures beside the table; older ones are not about these.

    Where no setting is best, as in a sweep of attacks without a defense, there are pictures of the attacks.
    Where none can be drawn, as of a sweep that was imported without its results, the older ones stay.
    """
    found: list[Path] = []
    for case in cases(grouped(result.trials)):
        best = result.choices.get(case.name)
        first = next((trial.id for group in case.groups for trial in group.done), None)
        kind = "best" if best else "case"
        place = f"{kind}-{re.sub(r'[^A-Za-z0-9.]+', '-', case.name)}" if len(result.by_group) > 1 else kind
        if (trial := best or first) in ledger.entries:
            found += gallery.placed(ledger.entries[trial], folder, place)
    old = {*folder.glob("best-*.png"), *folder.glob("case-*.png")} if found else set()
    for picture in old - set(found):
        picture.unlink(missing_ok=True)
    return found


def table_of(outcome: SweepOutcome, *, sort: str | None = None, top: int | None = None) -> table.Table:
    """Return the table that a person reads; raises `UserError` where there is nothing called like `sort`."""
    spec = outcome.spec
    return table.build(
        outcome.result, paper=spec.published, notes=spec.notes, sort=sort, top=top, limit=files.TERMINAL_ROWS
    )


def _result(spec: SweepSpec, trials: Sequence[TrialResult]) -> SweepResult:
    select = spec.select
    oracle = oracle_reads(spec, (read for trial in trials for read in trial.oracle))
    return selected(spec.name, trials, select.metric, select.mode, over=select.over, oracle=oracle)

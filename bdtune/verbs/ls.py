"""`bdtune ls`: the sweeps of a run directory, how far each is, and what is best in it."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bdtune.config.trial import trial_id
from bdtune.engine.owner import is_gone
from bdtune.errors import UserError
from bdtune.knobs import short_names
from bdtune.metrics import metric_of
from bdtune.report import files
from bdtune.report.groups import grouped, label
from bdtune.report.selection import rule_title, setting_axes
from bdtune.report.table import duration
from bdtune.tracking.runs import SWEEP, Runs
from bdtune.trials.sweep_folder import ASKED, SETTINGS, asked_trials
from bdtune.verbs.home import settings_of, sweeps_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bdtune.trials.results import SweepResult, TrialResult

OWNERS = "tune/*/owner.json"
BAD = ("failed", "diverged")


@dataclass(frozen=True)
class Best:
    """The best setting on one data set and attack."""

    on: str
    """Which of them; nothing where there is one."""
    value: float
    setting: str


@dataclass(frozen=True)
class SweepRow:
    """One sweep as `bdtune ls` prints it."""

    sweep: str
    last: float
    """Unix time of its last run or report."""
    state: str
    """running, done, unfinished or unreadable."""
    trials: int = 0
    """Without the baselines that nobody asked for."""
    done: int = 0
    failed: int = 0
    seconds: float = 0.0
    """Of computing, as far as it is reported."""
    rule: str = ""
    best: tuple[Best, ...] = ()
    problem: str = ""
    """Why it cannot be read."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        when = datetime.fromtimestamp(self.last).astimezone().isoformat(timespec="seconds")
        return {**asdict(self), "last": when, "best": [asdict(each) for each in self.best]}


def listing(run_dir: Path) -> list[SweepRow]:
    """Return the sweeps of a run directory, the one that was run last first; writes nothing."""
    rows = [_row(name, folder) for name, folder in sweeps_of(run_dir).items()]
    return sorted(rows, key=lambda row: row.last, reverse=True)


def _row(name: str, folder: Path) -> SweepRow:
    began = max(file.stat().st_mtime for file in [folder / SETTINGS, *(folder / ASKED).glob("*.yaml")])
    report = folder / "sweep.json"
    ended = report.stat().st_mtime if report.exists() else 0.0
    running = _is_running(folder)
    try:
        if ended >= began and not running:
            return _reported(name, files.read(folder), ended)
        return _under_way(name, folder, began, running)
    except UserError as error:
        return SweepRow(name, max(began, ended), "unreadable", problem=str(error.problems[0]))


def _is_running(folder: Path) -> bool:
    """Return whether a start of the sweep is under way, as far as this machine can tell."""
    for file in folder.glob(OWNERS):
        with contextlib.suppress(OSError, ValueError, KeyError):
            if not is_gone(json.loads(file.read_text())["owner"]):
                return True
    return False


def _reported(name: str, result: SweepResult, ended: float) -> SweepRow:
    asked = [trial for trial in result.trials if not trial.is_baseline]
    done, failed = _count(asked, "done"), _count(asked, *BAD)
    state = "unfinished" if _count(asked, "pending") else "done"
    seconds = result.summary()["seconds_computed"]
    return SweepRow(
        name, ended, state, len(asked), done, failed, seconds, rule_title(result.metric), tuple(_best(result))
    )


def _under_way(name: str, folder: Path, began: float, running: bool) -> SweepRow:
    """Return a sweep without a report of its last run: its trials are counted by what it recorded of each."""
    spec = settings_of(folder)
    if spec.search is not None:
        count = spec.search.trials
    else:
        asked, _ = asked_trials(folder)
        count = len({trial_id(trial) for trial in asked})
    runs = Runs(folder)
    found = [run for each in runs.signatures() if each != SWEEP and (run := runs.read(each)) is not None]
    ended = [run.tags.get("bdtune.status") for run in found if run.tags.get("bdtune.role") == "trial"]
    done, failed = ended.count("done"), sum(ended.count(status) for status in BAD)
    return SweepRow(name, began, "running" if running else "unfinished", count, done, failed)


def _count(trials: list[TrialResult], *statuses: str) -> int:
    return sum(trial.status in statuses for trial in trials)


def _best(result: SweepResult) -> list[Best]:
    groups = grouped(result.trials)
    by_trial = {trial.id: group for group in groups for trial in group.trials}
    names = short_names(setting_axes(groups))
    found = []
    for on, trials in result.best_settings.items():
        group = by_trial[trials[0].id]
        stat = group.stat(metric_of(result.metric))
        if stat is not None:
            found.append(Best(on, stat.mean, label(group, list(names), names)))
    return found


def cells(rows: list[SweepRow]) -> list[Mapping[str, Any]]:
    """Return the rows as a table shows them."""
    return [
        {
            "sweep": row.sweep,
            "last run": _when(row.last),
            "state": ", ".join([row.state, *([f"{row.failed} failed"] if row.failed else [])]),
            "trials": "-" if row.problem else f"{row.done}/{row.trials}",
            "computing": duration(row.seconds) if row.seconds else "-",
            "best": "\n".join(_text(row.rule, best) for best in row.best[:3]) or "-",
        }
        for row in rows
    ]


def notes(rows: list[SweepRow], run_dir: Path) -> list[str]:
    """Return what is to be said below the table."""
    if not rows:
        return [f"no sweep in {run_dir}; 'bdtune sweep gssd.yaml' runs one"]
    return [f"{row.sweep}: {row.problem}" for row in rows if row.problem]


def _text(rule: str, best: Best) -> str:
    on = f"{best.on}: " if best.on else ""
    return f"{on}{rule} {best.value:.3f}" + (f", {best.setting}" if best.setting else "")


def _when(then: float) -> str:
    """Return a time as "06:15 today" or as a date."""
    moment, now = time.localtime(then), time.localtime()
    if moment[:3] == now[:3]:
        return time.strftime("today %H:%M", moment)
    return time.strftime("%Y-%m-%d %H:%M", moment)

"""What a campaign came to: its tables, from what the store has, and the files of its folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bdtune.config.campaign import is_campaign, load_campaign, renamed
from bdtune.config.load import find
from bdtune.config.yaml_file import read_yaml
from bdtune.engine.files import replace_file
from bdtune.errors import Problem, UserError, nearest
from bdtune.report import comparison, cross, cross_table, table
from bdtune.report.campaign import CampaignTables, Member, summary_rows
from bdtune.trials import left_out
from bdtune.trials.left_out import LeftOut
from bdtune.trials.sweep_folder import SWEEPS, find_place
from bdtune.verbs import sweep_report
from bdtune.verbs.ending import closing_lines, exit_code
from bdtune.verbs.tables import plain_table

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bdtune.config.campaign import Campaign
    from bdtune.config.sweep import SweepSpec
    from bdtune.report.cross import CrossTable
    from bdtune.report.table import Table
    from bdtune.trials.results import SweepResult, TrialResult

CAMPAIGN = "campaign.yaml"
"""In the campaign's folder, `sweeps/<name>`: its settings, with every sweep written out."""


@dataclass(frozen=True)
class CampaignOutcome:
    """What a campaign came to, for the command line to print."""

    campaign: Campaign
    members: tuple[Member, ...]
    folder: Path
    left_out: LeftOut = field(default_factory=LeftOut)
    """The trials that did not fit the budget."""
    interrupted: bool = False
    given_up: str | None = None
    tracking: str = ""
    written: tuple[Path, ...] = ()
    latest: tuple[TrialResult, ...] = ()

    @property
    def name(self) -> str:
        """The campaign's name."""
        return self.campaign.name

    @property
    def sweeps(self) -> dict[str, SweepResult]:
        """The results of each sweep by the name of its folder."""
        return {member.spec.name: member.result for member in self.members}

    @property
    def tables(self) -> CampaignTables:
        """What makes its cross tables."""
        return CampaignTables(
            self.campaign, self.members, dict.fromkeys(self.left_out.ids, cross.OUT_OF_BUDGET)
        )

    @cached_property
    def crossed(self) -> Mapping[str, CrossTable]:
        """The tables that its file asks for, by the name of their files."""
        return self.tables.all()

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some given up, 3 some failed, 130 interrupted."""
        return exit_code(self.given_up, self.latest, interrupted=self.interrupted)

    def summary(self) -> Table:
        """Return one row for each sweep."""
        return plain_table(f"campaign {self.name}", summary_rows(self.members), self.left_out.lines())

    def note(self) -> str:
        """Return its own tables as Markdown."""
        crossed = [cross_table.neutral(each) for each in self.crossed.values()]
        ranking = comparison.of_campaign(self.name, self.sweeps.values())
        return "\n\n".join(map(table.markdown, [self.summary(), *ranking.values(), *crossed]))

    def to_json(self) -> dict[str, Any]:
        """Return the shape that `bdtune campaign --json` prints."""
        return {
            "campaign": self.name,
            "sweeps": {name: result.to_json() for name, result in self.sweeps.items()},
            "tables": {stem: cross.to_json(each) for stem, each in self.crossed.items()},
            "left_out": list(self.left_out.trials.values()),
        }

    def ending(self, out: Path | None) -> list[str]:
        """Return the lines that end a run; `out` is the run directory that the command line gave."""
        commands = [f"bdtune report {self.name} --table", f"bdtune report {self.name} --html"]
        return closing_lines(self, self.written, commands, out)


def report(name: str, run_dir: Path, *, store: str | None = None) -> CampaignOutcome:
    """Return a campaign's report as the store has it now: nothing is computed.

    `name`: the campaign's, or its file. Raises `UserError` where no such campaign was run.
    """
    folder = _folder(name, run_dir)
    campaign = load_campaign(folder / CAMPAIGN, check_data=False)
    members = tuple(_members(campaign, run_dir, store))
    outcome = CampaignOutcome(campaign, members, folder, left_out.read(folder) or LeftOut())
    if os.access(folder, os.W_OK):
        write_report(outcome)
    return outcome


def begun(run_dir: Path, campaign: Campaign) -> list[Path]:
    """Return the folders of the campaign and of its sweeps, as far as they were begun."""
    folder = run_dir / SWEEPS / campaign.name
    places = [find_place(run_dir, spec) for spec in campaign.sweeps]
    own = [folder] if (folder / CAMPAIGN).is_file() else []
    return own + [place.folder for place in places if place.known]


def _members(campaign: Campaign, run_dir: Path, store: str | None) -> list[Member]:
    """Return the sweeps that were begun."""
    places = [(spec, find_place(run_dir, spec)) for spec in campaign.sweeps]
    return [_member(spec, place.name, run_dir, store) for spec, place in places if place.known]


def _member(spec: SweepSpec, name: str, run_dir: Path, store: str | None) -> Member:
    told = sweep_report.report(name, run_dir, store=store)
    assert told.folder is not None, "a report knows its folder"
    return Member(spec.name, renamed(spec, name), told.result, told.folder, told.why)


def is_known(name: str, run_dir: Path) -> bool:
    """Return whether a name, or a file, is a campaign's, and no sweep has the name."""
    folder = run_dir / SWEEPS / name
    return (folder / CAMPAIGN).is_file() or (is_campaign(name) and not folder.is_dir())


def _folder(name: str, run_dir: Path) -> Path:
    """Return the folder of the campaign of this name or file; raises `UserError` with the nearest name."""
    known = sorted(file.parent.name for file in run_dir.glob(f"{SWEEPS}/[!.]*/{CAMPAIGN}"))
    if name not in known and is_campaign(name):
        file = find(name)
        name = str(read_yaml(file).data.get("name", file.stem))
    if name not in known:
        listed = ", ".join(known) or "there is none yet"
        expected = f"expected a campaign that was run in {run_dir}: {listed}"
        raise UserError(Problem("", expected, f"'{name}'", hint=nearest(name, known)))
    return run_dir / SWEEPS / name


def write_report(outcome: CampaignOutcome) -> list[Path]:
    """Write `report.md`, with the tables of the sweeps too, and the campaign's own tables in every form."""
    folder = outcome.folder
    texts = {"report.md": "\n\n".join([outcome.note(), *map(_settings_table, outcome.members)])}
    for stem, crossed in outcome.crossed.items():
        texts |= cross_table.texts(crossed, stem)
    for name, text in texts.items():
        replace_file(folder / name, text.encode())
    for old in folder.glob("table*.*"):
        if old.name not in texts:
            old.unlink()
    return [folder / name for name in texts]


def _settings_table(member: Member) -> str:
    """Return the table of all settings of a sweep, as Markdown."""
    spec = member.spec
    return table.markdown(table.build(member.result, paper=spec.published, notes=spec.notes))

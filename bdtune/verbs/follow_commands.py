"""The commands about sweeps and trials that were run: ls, diff, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdtune.verbs.console import AsJson, Out, show_json, show_result, show_table
from bdtune.verbs.place import folder as checked_folder
from bdtune.verbs.place import run_directory

if TYPE_CHECKING:
    from bdtune.verbs.trial import TrialPage


def ls(out: Out = None, as_json: AsJson = False) -> None:
    """List the sweeps of the run directory: when each was run, how far it is, what is best.

    Examples:

    bdtune ls
    bdtune ls --out /shared/runs --json
    """
    from bdtune.verbs import ls as verb
    from bdtune.verbs import tables

    home = run_directory(out, write=False)
    rows = verb.listing(home)
    table = tables.plain_table(f"sweeps in {home}", verb.cells(rows), verb.notes(rows, home))
    show_result([row.to_json() for row in rows], table, as_json)


def diff(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A sweep's name or folder, or a trial's id or its beginning.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one of the same kind.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Say which settings and which numbers differ between two sweeps, or two trials.

    Numbers are compared where both sweeps have a setting: means over seeds. Examples:

    bdtune diff gssd gssd-2
    bdtune diff gssd /shared/runs/sweeps/gssd --json
    bdtune diff 0d12aa10 77c0b3f2
    """
    from bdtune.verbs import diff as verb

    found = verb.diff(first, second, run_directory(out, write=False))
    if as_json:
        show_json(found.to_json())
        return
    for number, table in enumerate(verb.diff_tables(found)):
        if number:
            print()
        show_table(table)


def show_trial(word: str, out: Path | None, *, as_json: bool) -> None:
    """Print a trial's stages."""
    from bdtune.verbs import trial as verb
    from bdtune.verbs.home import find_trial

    shown: TrialPage = verb.page(find_trial(word, run_directory(out, write=False)))
    show_result(shown.to_json(), verb.page_table(shown), as_json)


def export(
    name: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's id, or its beginning.")],
    to: Annotated[
        Path | None, typer.Argument(metavar="TO", help="A new folder (default: the name, here).")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Write a trial into a folder of plain files.

    model.safetensors is a state dict with the normalisation, rows.csv says of each training row whether it is
    poison and whether it was kept, relabelled or suspected. Examples:

    bdtune export 0d12aa10 best
    """
    from bdtune.verbs.export_trial import export_trial
    from bdtune.verbs.home import find_trial

    home = run_directory(out, write=False)
    trial = find_trial(name, home)
    written = export_trial(trial, checked_folder("TO", to or Path(trial.result.id)))
    show_result([str(file) for file in written], None, as_json)
    print(f"written to {written[0].parent}: {', '.join(file.name for file in written)}", file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (ls, diff, export):
        app.command(no_args_is_help=command is not ls)(command)

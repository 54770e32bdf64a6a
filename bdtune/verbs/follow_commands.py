"""The commands about sweeps and trials that were run: ls, diff, verify, export, import."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bdtune.errors import UserError
from bdtune.verbs.console import AsJson, Out, Quiet, StoreAt, show_json, show_result, show_table
from bdtune.verbs.place import folder as checked_folder
from bdtune.verbs.place import run_directory

if TYPE_CHECKING:
    from bdtune.config.sweep import Kept
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
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Say which settings and which numbers differ between two sweeps, or two trials.

    Numbers are compared where both sweeps have a setting: means over seeds. Examples:

    bdtune diff gssd gssd-2
    bdtune diff gssd /shared/runs/sweeps/gssd --json
    bdtune diff 0d12aa10 77c0b3f2
    """
    from bdtune.verbs import diff as verb

    found = verb.diff(first, second, run_directory(out, write=False), store)
    if as_json:
        show_json(found.to_json())
        return
    for number, table in enumerate(verb.diff_tables(found)):
        if number:
            print()
        show_table(table)


def show_trial(word: str, out: Path | None, store: str | None, *, as_json: bool) -> None:
    """Print a trial's stages."""
    from bdtune.verbs import trial as verb
    from bdtune.verbs.home import find_trial

    shown: TrialPage = verb.page(find_trial(word, run_directory(out, write=False), store))
    show_result(shown.to_json(), verb.page_table(shown), as_json)


def verify(
    name: Annotated[str, typer.Argument(metavar="SWEEP", help="The sweep's name, or its YAML file.")],
    sample: Annotated[
        int, typer.Option("--sample", min=1, metavar="N", help="Most trials that are computed again.")
    ] = 5,
    tolerance: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Largest difference of a metric where another processor or library computed it.",
        ),
    ] = 0.02,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets (default: the sweep's, or BDTUNE_DATA).")
    ] = None,
    out: Out = None,
    store: StoreAt = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compute a sample of a sweep's trials again from nothing, in a fresh store, and compare.

    With the same libraries and kind of CPU every bit must be equal, elsewhere metrics up to the tolerance.
    Says which stage differs first. Exit status 3 when a trial did not come out again. Examples:

    bdtune verify gssd
    bdtune verify gssd --sample 2 --json
    """
    from bdtune.verbs import verify as verb
    from bdtune.verbs.home import find_sweep
    from bdtune.verbs.verify_table import verify_table

    home = run_directory(out, write=False)
    folder = find_sweep(name, home)
    found = verb.verify(
        folder, home, sample=sample, tolerance=tolerance, data_root=data_root, store=store, quiet=quiet
    )
    show_result([check.to_json() for check in found], verify_table(folder.name, found, tolerance), as_json)
    raise typer.Exit(0 if all(check.good for check in found) else 3)


def export(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A sweep's name, or a trial's id or its beginning.")
    ],
    to: Annotated[
        Path | None, typer.Argument(metavar="TO", help="A new folder (default: NAME, here).")
    ] = None,
    weights: Annotated[bool, typer.Option("--weights", help="Of a sweep: add the classifiers.")] = False,
    verdicts: Annotated[
        bool,
        typer.Option("--verdicts", help="Of a sweep: add which rows were kept, relabelled and suspected."),
    ] = False,
    out: Out = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Write a sweep or a trial into a folder.

    A sweep's settings, numbers and manifests, for 'bdtune import' on another machine. Of a trial plain files:
    model.safetensors is a state dict with the normalisation, rows.csv says of each training row whether it is
    poison and whether it was kept, relabelled or suspected. Examples:

    bdtune export gssd gssd-results --weights --verdicts
    bdtune export 0d12aa10 best
    """
    from bdtune.verbs.home import find_trial, sweeps_of

    home = run_directory(out, write=False)
    target = checked_folder("TO", to or Path(name))
    if (folder := sweeps_of(home).get(name)) is not None:
        from bdtune.verbs.export_sweep import export_sweep
        from bdtune.verbs.stores import of_sweep

        of_sweep(folder, store)  # which is the one that it began with, and answers
        asked: dict[Kept, bool] = {"model": weights, "verdicts": verdicts}
        kept = [kind for kind, wanted in asked.items() if wanted]
        done = export_sweep(folder, home, target, keep=kept)
        show_result(done.to_json(), None, as_json)
        print(done.line(), file=sys.stderr)
        return
    if weights or verdicts:
        raise UserError("--weights and --verdicts are for sweeps only: of a trial both are written")
    from bdtune.verbs.export_trial import export_trial

    written = export_trial(find_trial(name, home, store), target)
    show_result([str(file) for file in written], None, as_json)
    print(f"written to {target}: {', '.join(file.name for file in written)}", file=sys.stderr)


def import_(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="What 'bdtune export SWEEP' wrote.")],
    out: Out = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Take in a sweep that was exported: it reports and verifies as where it was computed.

    Every file is checked first. Example:

    bdtune import gssd-results
    """
    from bdtune.verbs.import_sweep import import_sweep

    home = run_directory(out)
    done = import_sweep(checked_folder("FOLDER", source), home, store)
    show_result(done.to_json(), None, as_json)
    for line in done.lines(home if out else None):
        print(line, file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(ls)
    for command in (diff, verify, export):
        app.command(no_args_is_help=True)(command)
    app.command("import", no_args_is_help=True)(import_)

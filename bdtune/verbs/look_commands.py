"""The commands about what there is: list, show, check, doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bdtune.errors import UserError
from bdtune.verbs import follow_commands
from bdtune.verbs.console import AsJson, Out, Quiet, StoreAt, show_json, show_result, show_table
from bdtune.verbs.place import run_directory


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            help="attacks, defenses, datasets, models, metrics, samplers, schedulers, search-spaces, "
            "campaigns; or all.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what there is, with a sentence and the source of each.

    Examples:

    bdtune list attacks
    bdtune list search-spaces --json
    """
    from bdtune.verbs import show as verb
    from bdtune.verbs import tables

    found = {each: verb.describe_all(each) for each in ([verb.kind_of(kind)] if kind else verb.KINDS)}
    if as_json:
        listed = {each: [vars(entry) for entry in entries] for each, entries in found.items()}
        show_json(next(iter(listed.values())) if kind else listed)
        return
    for each, entries in found.items():
        show_table(tables.list_table(each, entries))


def show(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="attack, defense, dataset or model; or trial.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, or the trial's id.")],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Settings of an attack's picture: its knobs, the data set."),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", "-o", help="An attack's picture (default: NAME.png, here).")
    ] = None,
    out: Out = None,
    store: StoreAt = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="Compute what the attack trains first, if the store lacks it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the knobs of a plugin; of an attack also a picture: clean, poisoned, and their difference.

    What an attack trains first is taken from the store, or trained with --train. Of a trial its stages are
    shown: what each reads, where its result lies, what it cost. Examples:

    bdtune show defense gssd
    bdtune show attack badnets attack.pattern=grid -o grid.png
    bdtune show attack badnets dataset=cifar10 data_root=/data
    bdtune show attack trojan dataset.train_limit=200 --train
    bdtune show trial 0d12aa10
    """
    from bdtune.verbs import show as verb
    from bdtune.verbs import tables

    if kind.casefold() == "trial":
        if words or picture or train:
            raise UserError("settings and a picture are for attacks only, not for a trial")
        follow_commands.show_trial(name, out, store, as_json=as_json)
        return
    shown = verb.shown(verb.plugin_kind_of(kind), name)
    if verb.kind_of(kind) != "attacks":
        if words or picture or train:
            raise UserError(f"settings and a picture are for attacks only, not for a {kind}")
        show_result(shown.to_json(), tables.shown_table(kind, shown), as_json)
        return
    from bdtune.verbs.attack_picture import draw, requested

    needed = [f"attack.{row.path}" for row in shown.knobs if row.default == "required"]
    if needed and not words:
        show_result(shown.to_json(), tables.shown_table(kind, shown), as_json)
        print(f"no picture: it needs {', '.join(needed)}", file=sys.stderr)
        return
    folder = run_directory(out, write=train)
    target = (picture or Path(f"{name}.png")).absolute()
    request = requested(name, words or [], target, folder, store=store)
    show_result(shown.to_json(), tables.shown_table(kind, shown), as_json)
    sys.stdout.flush()  # before a training that may take long
    print(draw(request, train=train), file=sys.stderr)


def check(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH",
            help="A plugin's file or folder, or a folder with attacks/, defenses/ and so on. Default: the "
            "plugins of BDTUNE_PLUGINS and of installed packages.",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check what every plugin promises, on your own plugins: tiny images, short trainings.

    Exit status 3 when a promise is broken. Examples:

    bdtune check mine/attacks/frame.py
    bdtune check mine --json
    """
    from bdtune.verbs import check as verb
    from bdtune.verbs import tables

    found = verb.check(path, quiet=quiet)
    if not as_json:
        for line in verb.lines(found):
            print(line)
    show_result([vars(verdict) for verdict in found], tables.check_table(found), as_json)
    raise typer.Exit(0 if all(verdict.kept for verdict in found) else 3)


def doctor(
    out: Out = None,
    store: StoreAt = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data sets (default: BDTUNE_DATA).")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster whose nodes are asked, as 'auto' or HOST:PORT.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, which devices there are, and which data is found.

    Exit status 1 when something that a sweep needs is missing. Examples:

    bdtune doctor --data-root /data
    bdtune doctor --address auto --out /shared/bdtune-runs
    """
    from bdtune.verbs import tables
    from bdtune.verbs.doctor import examine

    found = examine(run_directory(out), data_root, address, store=store)
    show_result([vars(finding) for finding in found], tables.doctor_table(found), as_json)
    raise typer.Exit(1 if any(finding.severity == "problem" for finding in found) else 0)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list")(list_)
    for command in (show, check, doctor):
        app.command()(command)

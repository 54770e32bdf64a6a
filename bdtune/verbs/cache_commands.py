"""`bdtune cache`: its commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bdtune.verbs.console import AsJson, Out, StoreAt, show_result
from bdtune.verbs.place import run_directory

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.engine.store import Store

app = typer.Typer(help="What the store holds: ls, why, verify, gc, remove.", no_args_is_help=True)


@app.command("ls")
def ls(out: Out = None, store: StoreAt = None, as_json: AsJson = False) -> None:
    """List all artefacts, newest last.

    Example:

    bdtune cache ls --json
    """
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    rows = verb.listing(_store(out, store))
    show_result(rows, tables.cache_table(rows), as_json)


@app.command("why")
def why(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="A key as 'cache ls' prints it, or a trial's id; or its beginning."),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    out: Out = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Say which knobs make two artefacts, or two trials, differ.

    Where an input differs, the knob of the earlier stage is named. Examples:

    bdtune cache why 3b53c605 b310f79c
    bdtune cache why 0d12aa10 77c0b3f2 --json
    """
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    rows = [
        vars(difference)
        for difference in verb.why(_store(out, store), first, second, run_directory(out, write=False))
    ]
    show_result(rows, tables.plain_table(f"{first} and {second}", rows), as_json)


@app.command("verify")
def verify(out: Out = None, store: StoreAt = None, as_json: AsJson = False) -> None:
    """Check sizes and digests of all artefacts; damaged ones go to quarantine.

    Exit status 3 when there were any. Example:

    bdtune cache verify
    """
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    whole, damaged = verb.verify(_store(out, store, write=True))
    rows = [{"whole": whole, "damaged": len(damaged), "keys": " ".join(damaged)}]
    show_result({"whole": whole, "damaged": damaged}, tables.plain_table("store", rows), as_json)
    raise typer.Exit(3 if damaged else 0)


@app.command("gc")
def gc(
    keep: Annotated[float, typer.Option("--keep", min=0, help="Gigabytes that may stay.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    out: Out = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Remove artefacts, cheapest to compute per byte first, until at most so much is left.

    What a running sweep uses stays. Example:

    bdtune cache gc --keep 20 --dry-run
    """
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    row = vars(verb.collect(_store(out, store, write=not dry_run), int(keep * 1e9), dry_run=dry_run))
    show_result(row, tables.plain_table("would remove" if dry_run else "removed", [row]), as_json)


@app.command("remove")
def remove(
    key: Annotated[str, typer.Argument(metavar="KEY", help="As 'cache ls' prints it, or its beginning.")],
    out: Out = None,
    store: StoreAt = None,
    as_json: AsJson = False,
) -> None:
    """Remove one artefact: it counts as never computed. What was computed from it stays.

    Example:

    bdtune cache remove 3b53c605
    """
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    gone = verb.remove(_store(out, store, write=True), key)
    row = {"key": gone.key, "stage": gone.stage, "bytes": gone.stored}
    show_result(row, tables.plain_table("removed", [row]), as_json)


def _store(out: Path | None, given: str | None, *, write: bool = False) -> Store:
    from bdtune.verbs.stores import existing_store

    return existing_store(run_directory(out, write=write), given)

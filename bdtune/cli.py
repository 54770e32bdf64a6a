"""The command line: each verb loads what it needs, so that `--help` and `list` answer at once."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bdtune import __version__
from bdtune.errors import BdtuneError, UserError
from bdtune.verbs.place import run_directory

app = typer.Typer(
    help="Sweeps and ablations of backdoor defenses: work that trials share runs once.",
    epilog="Start here:  bdtune sweep gssd.yaml  (minutes on two cores, no download), then  bdtune ui",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(help="What the store holds: ls, why, verify, gc.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE] [KEY=VALUE ...]",
        help="A YAML file or a shipped search space, then settings such as dataset=cifar10 attack.rate=0.05. "
        "A comma makes a grid: seed=0,1,2.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run directory (default: BDTUNE_HOME, or bdtune-runs).")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress.")]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a data set that is not there, where possible.")
]


def main() -> None:
    """Run the command line; a user's mistake is told in plain words and exits with 2."""
    logging.basicConfig(level=os.environ.get("BDTUNE_LOG", "WARNING"), format="%(levelname)s %(message)s")
    try:
        app()
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except BdtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"bdtune {__version__}")
        raise typer.Exit


@app.command()
def sweep(
    words: Words = None,
    out: Out = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join, as 'auto' or HOST:PORT.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a local session (default: all).")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a local session (default: all).")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Most trials at a time.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Try failed trials again.")] = False,
    download: Download = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a sweep, or go on with it: the same command again computes only what is missing.

    bdtune sweep gssd.yaml
    bdtune sweep gssd.yaml dataset=cifar10 dataset.train_limit=10000 data_root=/data seed=0,1
    bdtune sweep gssd.yaml resources.gpu=0.5 --address auto
    """
    from bdtune.cluster.sweep import Options
    from bdtune.verbs import sweep as verb
    from bdtune.verbs.words import split

    file, overrides = split(words, download=download)
    options = Options(address, cpus, gpus, retry_failed, concurrency)
    swept = verb.sweep(file, overrides, run_directory(out), options, quiet=quiet)
    _print_sweep(swept, as_json)
    print(swept.tracking, file=sys.stderr)
    if swept.interrupted:
        print("interrupted; the same command goes on from here", file=sys.stderr)
    raise typer.Exit(swept.exit_code)


@app.command()
def plan(words: Words = None, out: Out = None, as_json: AsJson = False) -> None:
    """Print what a sweep would compute, what the store has of it, and what sharing saves.

    bdtune plan gssd.yaml defense.beta_nd=0.6,1.5,3
    """
    from bdtune.verbs import sweep as verb
    from bdtune.verbs import tables
    from bdtune.verbs.words import split

    spec, made = verb.plan(*split(words), run_directory(out))
    _print(made.to_json(), tables.plan_table(spec.name, made), as_json)


@app.command()
def run(
    words: Words = None,
    out: Out = None,
    download: Download = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run one trial in this process, with neither ray nor mlflow: for a GPU box, or to debug a trial.

    bdtune run dataset=digits attack=badnets defense=gssd defense.beta_nd=3 seed=1
    """
    from bdtune.verbs import run as verb
    from bdtune.verbs import tables
    from bdtune.verbs.words import split

    result = verb.run(*split(words, download=download), run_directory(out), quiet=quiet)
    trial = next(trial for trial in result.trials if trial.id == result.best)
    _print(trial.to_json(), tables.trial_table(result), as_json)
    if trial.error:
        print(trial.error, file=sys.stderr)
    raise typer.Exit(0 if trial.status == "done" else 3)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="attacks, defenses, datasets, models or search-spaces.")],
    as_json: AsJson = False,
) -> None:
    """List what there is, with a sentence and the source of each."""
    from bdtune.verbs import show as verb
    from bdtune.verbs import tables

    found = verb.describe_all(verb.kind_of(kind))
    _print([vars(entry) for entry in found], tables.list_table(kind, found), as_json)


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="attack, defense, dataset or model.")],
    name: Annotated[str, typer.Argument(help="Its name.")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", "-o", help="Where an attack's picture goes.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the knobs of a plugin; of an attack also a picture: clean, poisoned, difference times ten.

    bdtune show defense gssd
    bdtune show attack badnets dataset=cifar10 data_root=/data -o badnets.png
    """
    from bdtune.verbs import show as verb
    from bdtune.verbs import tables

    rows = verb.knobs_of(verb.kind_of(kind), name)
    _print([vars(row) for row in rows], tables.knob_table(f"{kind} {name}", rows), as_json)
    if verb.kind_of(kind) == "attacks":
        path = (picture or Path(f"{name}.png")).absolute()
        print(f"picture: {verb.draw_attack(name, words or [], path)}", file=sys.stderr)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="The sweep's name, or its YAML file.")],
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Print a sweep's table again, from what the store has now; writes report.md, .csv and .png beside it."""
    from bdtune.verbs import sweep as verb

    _print_sweep(verb.report(name, run_directory(out)), as_json)


@app.command()
def ui(out: Out = None, port: Annotated[int, typer.Option(min=1, max=65535)] = 5000) -> None:
    """Open MLflow's page on 127.0.0.1."""
    from bdtune.tracking.commands import ui as open_page

    print(f"http://127.0.0.1:{port}", file=sys.stderr)
    open_page(run_directory(out), port)


@app.command()
def sync(out: Out = None, as_json: AsJson = False) -> None:
    """Deliver to MLflow what could not be delivered before."""
    from bdtune.tracking.commands import sync as deliver
    from bdtune.verbs import tables

    done = deliver(run_directory(out))
    rows = [
        {"sweep": s.sweep, "delivered": s.delivered, "waiting": s.status.waiting, "error": s.status.error}
        for s in done
    ]
    _print(rows, tables.plain_table("MLflow", rows), as_json)
    raise typer.Exit(3 if any(row["waiting"] for row in rows) else 0)


@app.command()
def doctor(
    out: Out = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data sets.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is installed, which devices there are, and which data is found."""
    from bdtune.verbs import tables
    from bdtune.verbs.doctor import examine

    found = examine(run_directory(out), data_root)
    _print([vars(finding) for finding in found], tables.doctor_table(found), as_json)


@cache_app.command("ls")
def cache_ls(out: Out = None, as_json: AsJson = False) -> None:
    """List all artefacts."""
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    rows = verb.listing(_store(out))
    _print(rows, tables.cache_table(rows), as_json)


@cache_app.command("why")
def cache_why(first: str, second: str, out: Out = None, as_json: AsJson = False) -> None:
    """Say what differs between the recipes of two artefacts, given by their keys."""
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    rows = [vars(difference) for difference in verb.why(_store(out), first, second)]
    _print(rows, tables.plain_table(f"{first} and {second}", rows), as_json)


@cache_app.command("verify")
def cache_verify(out: Out = None, as_json: AsJson = False) -> None:
    """Check sizes and digests of all artefacts; damaged ones go to quarantine."""
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    whole, damaged = verb.verify(_store(out))
    rows = [{"whole": whole, "damaged": len(damaged), "keys": " ".join(damaged)}]
    _print({"whole": whole, "damaged": damaged}, tables.plain_table("store", rows), as_json)
    raise typer.Exit(3 if damaged else 0)


@cache_app.command("gc")
def cache_gc(
    keep: Annotated[float, typer.Option("--keep", min=0, help="Gigabytes that may stay.")],
    dry_run: Annotated[bool, typer.Option(help="Only say what would go.")] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Remove artefacts, cheapest to compute per byte first, until at most so much is left."""
    from bdtune.verbs import cache as verb
    from bdtune.verbs import tables

    row = vars(verb.collect(_store(out), int(keep * 1e9), dry_run=dry_run))
    _print(row, tables.plain_table("would remove" if dry_run else "removed", [row]), as_json)


def _store(out: Path | None) -> Any:
    from bdtune.engine.store import Store

    root = run_directory(out) / "store"
    if not root.exists():
        raise UserError(f"no store at {root}; run a sweep first, or give its --out")
    return Store(root)


def _print(value: Any, shown: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(value, indent=1, default=str))
        return
    from bdtune.report.files import show as show_table

    show_table(shown)


def _print_sweep(swept: Any, as_json: bool) -> None:
    from bdtune.verbs import sweep as verb

    _print(swept.result.to_json(), None if as_json else verb.table_of(swept), as_json)


if __name__ == "__main__":
    main()

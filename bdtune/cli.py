"""The command line: each verb loads what it needs, so that `--help` and `list` answer at once."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from bdtune import __version__
from bdtune.cluster.signals import interruptible
from bdtune.errors import BdtuneError, UserError
from bdtune.verbs import follow_commands
from bdtune.verbs.cache_commands import app as cache_app
from bdtune.verbs.console import (
    AsJson,
    Out,
    Quiet,
    StoreAt,
    results_only_on_stdout,
    show_json,
    show_result,
    show_table,
)
from bdtune.verbs.place import run_directory
from bdtune.verbs.report_command import report

if TYPE_CHECKING:
    from collections.abc import Iterator

HABITS = {
    "seeds": "seed=0,1,2 runs every setting with three seeds",
    "dry_run": "'bdtune plan' prints what a sweep would compute, and computes nothing",
    "config": "the file comes first: 'bdtune sweep FILE'",
    "file": "the file comes first: 'bdtune sweep FILE'",
    "data": "data_root=FOLDER is the folder of the data sets",
    "output": "--out is the run directory",
    "gpu": "--gpus is what a local session has, resources.gpu=1 what one trial occupies",
    "jobs": "--concurrency is the number of trials at a time",
}
"""What people look for among the options, and where it is."""


class Verbs(TyperGroup):
    """The verbs; of an option that there is not, it says which setting or verb is meant."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with _interruptible():
                return super().invoke(ctx)
        except Exception as error:
            option = getattr(error, "option_name", "")
            if type(error).__name__ == "NoSuchOption" and (meant := _meant(option)):
                raise UserError(f"there is no option {option}: {meant}") from None
            raise


def _meant(option: str) -> str:
    """Return which setting or verb is meant by an option that there is not, or nothing."""
    from bdtune.config.document import SWEEP_KEYS
    from bdtune.config.trial import TRIAL_KEYS

    name = option.lstrip("-").replace("-", "_")
    if name in HABITS:
        return HABITS[name]
    if name.partition(".")[0] in (*TRIAL_KEYS, *SWEEP_KEYS):
        return f"a setting has no dashes: {name}=VALUE"
    return ""


app = typer.Typer(
    cls=Verbs,
    help="Sweeps and ablations of backdoor defenses: work that trials share runs once.",
    epilog="Start here: 'bdtune sweep gssd.yaml' (minutes on two cores, no download), then 'bdtune ui'.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache_app, name="cache")

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FILE|KEY=VALUE",
        help="A YAML file or a shipped search space, then settings such as dataset=cifar10 attack.rate=0.05.",
    ),
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, as 'auto' or HOST:PORT.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPUs of a local session (default: all).")]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of a local session (default: all).")]
Concurrency = Annotated[int | None, typer.Option(min=1, help="Most trials at a time.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Try failed trials again.")]
MlflowWait = Annotated[
    float, typer.Option(min=0, metavar="SECONDS", help="Longest wait for MLflow at the end.")
]
Download = Annotated[
    bool, typer.Option("--download", help="Fetch a data set that is not there, where possible.")
]


def main() -> None:
    """Run the command line; a user's mistake is printed in plain words and exits with 2."""
    logging.basicConfig(level=os.environ.get("BDTUNE_LOG", "WARNING"), format="%(levelname)s %(message)s")
    try:
        app()
    except UserError as error:
        for line in error.lines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except BdtuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # the machine's fault: a full disk, a folder that cannot be written
        logging.getLogger(__name__).debug("traceback", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C, and SIGTERM, into plain words and exit status 130."""
    try:
        with interruptible():
            yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"bdtune {__version__}")
        raise typer.Exit


@app.command(no_args_is_help=True)
def sweep(
    words: Words = None,
    out: Out = None,
    store: StoreAt = None,
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    concurrency: Concurrency = None,
    retry_failed: RetryFailed = False,
    mlflow_wait: MlflowWait = 30.0,
    download: Download = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a sweep, or go on with it: the same command again computes only what is missing.

    Settings override the file's; a comma makes a grid. Examples:

    bdtune sweep gssd.yaml
    bdtune sweep gssd.yaml dataset=cifar10 data_root=/data seed=0,1
    bdtune sweep paper/gssd_k1 resources.gpu=0.5 --address auto
    bdtune sweep gssd.yaml --address auto --store s3://bucket/gssd
    """
    from bdtune.cluster.sweep import Options
    from bdtune.verbs import sweep as verb
    from bdtune.verbs.words import fetch_for_sweep, split, sweep_file

    file, overrides = split(words)
    read = sweep_file(file)
    if download:
        fetch_for_sweep(file, overrides)
    options = Options(address, cpus, gpus, retry_failed, concurrency)
    with results_only_on_stdout():
        swept = verb.sweep(
            read, overrides, run_directory(out), options, store=store, quiet=quiet, wait_s=mlflow_wait
        )
    if as_json or swept.result.trials:  # an interrupted sweep may have none yet
        _print_sweep(swept, as_json)
    print("\n".join(swept.ending(out)), file=sys.stderr)
    raise typer.Exit(swept.exit_code)


@app.command(no_args_is_help=True)
def campaign(
    words: Words = None,
    out: Out = None,
    store: StoreAt = None,
    address: Address = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    concurrency: Concurrency = None,
    retry_failed: RetryFailed = False,
    mlflow_wait: MlflowWait = 30.0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run several sweeps as one: shared work is done once, and the same command goes on.

    'bdtune plan' says what it costs, 'bdtune report' prints its table again. Examples:

    bdtune campaign digits_all
    bdtune campaign paper/gssd_appendix data_root=/data budget=100 resources.gpu=0.5 --address auto
    """
    from bdtune.cluster.sweep import Options
    from bdtune.verbs import campaign_run as verb
    from bdtune.verbs import report_forms

    file, overrides = _campaign_words(words)
    options = Options(address, cpus, gpus, retry_failed, concurrency)
    with results_only_on_stdout():
        done = verb.run(
            file, overrides, run_directory(out), options, store=store, quiet=quiet, wait_s=mlflow_wait
        )
    report_forms.print_campaign(done, "terminal", as_json)
    print("\n".join(done.ending(out)), file=sys.stderr)
    raise typer.Exit(done.exit_code)


@app.command(no_args_is_help=True)
def plan(words: Words = None, out: Out = None, store: StoreAt = None, as_json: AsJson = False) -> None:
    """Print what a sweep would compute, what the store has of it, and what sharing saves.

    Computes and writes nothing. Trials of data sets that are not there are left out, and counted.
    Examples:

    bdtune plan gssd.yaml
    bdtune plan gssd.yaml defense.beta_nd=0.6,1.5,3 seed=0,1,2 --json
    """
    from bdtune.config.load import read_file
    from bdtune.verbs import sweep as verb
    from bdtune.verbs import tables
    from bdtune.verbs.words import split

    file, overrides = split(words)
    read = None if file is None else read_file(file)
    if read is not None and read.holds_sweeps:
        from bdtune.verbs import campaign_plan as campaigns

        planned = campaigns.plan(read, overrides, run_directory(out, write=False), store=store)
        show_result(planned.to_json(), campaigns.plan_table(planned), as_json)
        return
    spec, made = verb.plan(read, overrides, run_directory(out, write=False), store=store)
    show_result(tables.plan_json(spec, made), tables.plan_table(spec, made), as_json)


@app.command(no_args_is_help=True)
def run(
    words: Words = None,
    out: Out = None,
    store: StoreAt = None,
    download: Download = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run one trial in this process, with neither ray nor mlflow: for a GPU box, or to debug a trial.

    Its baseline is run too. Of a sweep's file the base trial is taken. Examples:

    bdtune run dataset=digits attack=badnets defense=gssd seed=1
    bdtune run gssd.yaml defense.beta_nd=6 --json
    """
    from bdtune.verbs import run as verb
    from bdtune.verbs import tables
    from bdtune.verbs.words import fetch_for_trial, split

    file, overrides = split(words)
    if download:
        fetch_for_trial(file, overrides)
    result = verb.run(file, overrides, run_directory(out), store=store, quiet=quiet)
    trial = next(trial for trial in result.trials if trial.id == result.best)
    show_result(trial.to_json(), tables.trial_table(result), as_json)
    if trial.error:
        print(trial.error, file=sys.stderr)
    raise typer.Exit(0 if trial.status == "done" else 3)


@app.command("list")
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


@app.command()
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


@app.command()
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


app.command()(report)


@app.command()
def ui(
    out: Out = None, port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 5000
) -> None:
    """Serve MLflow's page on 127.0.0.1, until Ctrl-C.

    Examples:

    bdtune ui
    bdtune ui --out /shared/runs --port 5001
    """
    from bdtune.tracking.commands import ui as open_page

    open_page(run_directory(out), port)


@app.command()
def sync(out: Out = None, as_json: AsJson = False) -> None:
    """Deliver to MLflow what could not be delivered before.

    Example, after a server was down:

    MLFLOW_TRACKING_URI=http://mlflow:5000 bdtune sync
    """
    from bdtune.tracking.commands import sync as deliver
    from bdtune.verbs import tables

    done = deliver(run_directory(out))
    rows = [
        {"sweep": s.sweep, "delivered": s.delivered, "waiting": s.status.waiting, "error": s.status.error}
        for s in done
    ]
    show_result(rows, tables.plain_table("MLflow", rows), as_json)
    raise typer.Exit(3 if any(row["waiting"] for row in rows) else 0)


@app.command()
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


follow_commands.register(app)


def _campaign_words(words: list[str] | None) -> tuple[str, list[str]]:
    from bdtune.verbs.words import split

    file, overrides = split(words)
    if file is None:
        raise UserError("expected a campaign's file first, as in 'bdtune campaign digits_all'")
    return file, overrides


def _print_sweep(swept: Any, as_json: bool) -> None:
    from bdtune.verbs import report_forms

    report_forms.print_settings(swept, "terminal", as_json)


if __name__ == "__main__":
    main()

"""The commands that plan and compute: sweep, campaign, plan, run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bdtune.errors import UserError
from bdtune.verbs.console import AsJson, Out, Quiet, StoreAt, results_only_on_stdout, show_result
from bdtune.verbs.place import run_directory

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
    from bdtune.verbs import report_forms
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
        report_forms.print_settings(swept, "terminal", as_json)
    print("\n".join(swept.ending(out)), file=sys.stderr)
    raise typer.Exit(swept.exit_code)


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


def _campaign_words(words: list[str] | None) -> tuple[str, list[str]]:
    from bdtune.verbs.words import split

    file, overrides = split(words)
    if file is None:
        raise UserError("expected a campaign's file first, as in 'bdtune campaign digits_all'")
    return file, overrides


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (sweep, campaign, plan, run):
        app.command(no_args_is_help=True)(command)

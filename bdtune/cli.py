"""The command line: each verb loads what it needs, so that `--help` and `list` answer at once."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from bdtune import __version__
from bdtune.cluster.signals import interruptible
from bdtune.errors import BdtuneError, UserError
from bdtune.verbs import compute_commands, follow_commands, look_commands
from bdtune.verbs.cache_commands import app as cache_app
from bdtune.verbs.console import (
    AsJson,
    Out,
    show_result,
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


compute_commands.register(app)
look_commands.register(app)
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


follow_commands.register(app)


if __name__ == "__main__":
    main()

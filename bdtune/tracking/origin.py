"""Where a run comes from: who started it, and the commit of the code that computes."""

from __future__ import annotations

import getpass
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import bdtune


@cache
def common_tags() -> dict[str, str]:
    """Return the tags that every run carries."""
    tags = {
        "mlflow.source.name": "bdtune",
        "mlflow.source.type": "LOCAL",
        "bdtune.version": bdtune.__version__,
    }
    with suppress(KeyError, OSError):  # containers may run under a number without a name
        tags["mlflow.user"] = getpass.getuser()
    commit = git_commit()
    return {**tags, **({"mlflow.source.git.commit": commit} if commit else {})}


def git_commit() -> str | None:
    """Return the commit of bdtune's own checkout, None for an installed package or without git."""
    file = Path(bdtune.__file__)
    try:
        # the file must belong to the checkout: an environment may lie inside someone else's project
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "rev-parse", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10)  # noqa: S603
    return done.stdout.strip()

"""Where a run comes from: who started it, and the commit of the code that computes."""

from __future__ import annotations

import getpass
from contextlib import suppress
from functools import cache

import bdtune
from bdtune.engine.manifest import git_commit


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
    commit = git_commit().removesuffix("+")
    return {**tags, **({"mlflow.source.git.commit": commit} if commit else {})}

"""Whether every node of a cluster sees the driver's store: a folder may be another one there.

The driver's pins are the mark by which a node knows the store, at the start of a sweep and of each process.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from bdtune.engine.objects import is_address, open_bucket
from bdtune.engine.store import Store
from bdtune.errors import BdtuneError, OutageError, Problem, UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bdtune.cluster.shared import Variables

ASK_S = 20.0
"""How long the nodes may take to answer at the start of a sweep."""


class UnseenError(OutageError):
    """This node does not see the driver's store."""


def see(root: Path | str, mark: str, *, hurried: bool = False) -> Store:
    """Open the store with the driver's mark; raises `UnseenError` where it cannot be used from this node.

    `hurried`: ask a bucket's server once, and not again for minutes.
    """
    try:
        store = _open(root, hurried=hurried)
        seen = store.pins.has(mark)
    except (BdtuneError, OSError) as error:
        raise UnseenError(f"{root} cannot be used on {socket.gethostname()}: {error}") from error
    if not seen:
        what = "is another one" if not isinstance(root, Path) or root.is_dir() else "is not there"
        raise UnseenError(f"{root} {what} on {socket.gethostname()}")
    if isinstance(root, Path) and not os.access(root, os.W_OK):
        raise UnseenError(f"{root} cannot be written on {socket.gethostname()}")
    return store


def _open(root: Path | str, *, hurried: bool) -> Store:
    if hurried and is_address(str(root)):
        from bdtune.engine.object_place import ObjectPlace

        return Store(ObjectPlace(open_bucket(str(root), hurried=True)))
    return Store(root, create=False)  # a folder of this name must not come to be on the node


def unseen(root: Path | str, mark: str, variables: Variables, nodes: Iterable[str]) -> dict[str, str]:
    """Ask nodes, by their ids, whether they see the store; returns what is wrong, by id.

    Who does not answer within `ASK_S` is left out: its trials will find out.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=where)(_look)
        asked[task.remote(root, mark, variables)] = node
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ASK_S)
    found = {}
    for reference in answered:
        try:
            wrong = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # bdtune itself may be missing there
            wrong = str(error).strip().splitlines()[-1]
        except ray.exceptions.RayError:  # the node is gone
            wrong = None
        if wrong is not None:
            found[asked[reference]] = wrong
    return found


def _look(root: Path | str, mark: str, variables: Variables) -> str | None:
    variables.adopt()
    try:
        see(root, mark, hurried=True)
    except UnseenError as error:
        return str(error)
    return None


def refuse(root: Path | str, wrong: Mapping[str, str]) -> None:
    """Raise `UserError` with each node, by name, that does not see the store."""
    hint = "Give a folder of a file system that all nodes share, or a bucket (jobs/README.md)"
    expected = f"expected a store that every node sees, as {root}"
    problems = [Problem("--store", expected, f"node {node}: {why}", hint=hint) for node, why in wrong.items()]
    if problems:
        raise UserError(problems)

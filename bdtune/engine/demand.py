"""What a node still needs: the expensive stages that are missing, found from the result backwards.

A stage whose result is not needed any more (everything after it exists) is not missing. One whose arrays were
dropped is missing where a missing stage reads it. Derived stages
are run here and now, as soon as their inputs exist: so equal cleansed sets are seen before anyone retrains.
Those that read much are left to a trial: a driver of hundreds of trials has no time for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.execute import Executor
    from bdtune.engine.node import Node

MOST_READ = 10_000_000
"""Bytes of results that a derived stage may read where `missing` runs it."""


def missing(executor: Executor, node: Node, *, read: bool = False) -> Iterator[tuple[Node, str]]:
    """Yield the nodes that others must compute for `node`, parents first, each once, where keys are known.

    These are expensive stages, derived ones that read more than `MOST_READ`, and derived ones that another
    process is computing right now. A node behind a derived stage that cannot run yet has no key and is not
    yielded. To be `read`, the node must have its arrays. Raises `StageFailed` when a derived stage fails.
    """
    return _missing(executor, node, {}, read=read)


State = Literal["missing", "dropped", "whole"]


def _missing(
    executor: Executor, node: Node, there: dict[str, State], *, read: bool
) -> Iterator[tuple[Node, str]]:
    """Yield as `missing`, and enter in `there` what the store has of each node, by recipe.

    `read`: whether the node's arrays are needed, and not only its name in later keys or its numbers.
    """
    known = there.get(node.recipe)
    if known in ("missing", "whole") or (known == "dropped" and not read):
        return
    there[node.recipe] = "missing"
    # Without a key it is not in the store for sure.
    for parent in node.parents if executor.resolver.key(node) is None else ():
        yield from _missing(executor, parent, there, read=False)
    key = executor.resolver.key(node)
    if key is None or _is_there(executor, node, key, there, read=read):
        return
    for parent in node.parents:
        yield from _missing(executor, parent, there, read=True)
    ready = all(there.get(parent.recipe) == "whole" for parent in node.parents)
    if node.stage.kind == "train" or (ready and _reads_much(executor, node)):
        yield node, key
    elif ready:
        state = _settle(executor, node)
        if state == "done":
            there[node.recipe] = "whole"
        if state == "lost":
            there.clear()  # an input was damaged: what depends on it is looked at again
            yield from _missing(executor, node, there, read=read)
        elif state == "elsewhere":
            yield node, key


def _is_there(executor: Executor, node: Node, key: str, there: dict[str, State], *, read: bool) -> bool:
    """Look for a node's result, and enter what the store has of it where that is enough."""
    if not executor.store.has(key):
        return False
    whole = executor.store.is_whole(key)
    if whole or not read:
        there[node.recipe] = "whole" if whole else "dropped"
    return whole or not read


def _reads_much(executor: Executor, node: Node) -> bool:
    manifests = (executor.resolver.manifest(parent) for parent in node.parents)
    return sum(manifest.size for manifest in manifests if manifest is not None) > MOST_READ


def _settle(executor: Executor, node: Node) -> Literal["done", "elsewhere", "lost"]:
    """Compute a derived node now, unless another process is just doing it or an input proves to be damaged.

    A damaged input has been moved away by then, and is not trained again here: that is for a trial to do.
    """
    for event in executor.walk([node]):
        if event.what == "waiting":
            return "elsewhere"
        if event.what == "started" and event.node.stage.kind == "train":
            return "lost"
    return "done"

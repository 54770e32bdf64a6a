"""What a node still needs: the expensive stages that are missing, found from the result backwards.

A stage whose result is not needed any more (everything after it exists) is not missing. Derived stages
are run here and now, as soon as their inputs exist: so equal cleansed sets are seen before anyone retrains.
Those that read much are left to a trial: a driver of hundreds of trials has no time for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.execute import Executor
    from bdtune.engine.stage import Node

MOST_READ = 10_000_000
"""Bytes of results that a derived stage may read where `missing` runs it."""


def missing(executor: Executor, node: Node) -> Iterator[tuple[Node, str]]:
    """Yield the nodes that others must compute for `node`, parents first, each once, where keys are known.

    These are expensive stages, derived ones that read more than `MOST_READ`, and derived ones that another
    process is computing right now. A node behind a derived stage that cannot run yet has no key and is not
    yielded. Raises `StageFailed` when a derived stage fails.
    """
    return _missing(executor, node, {})


def _missing(executor: Executor, node: Node, there: dict[str, bool]) -> Iterator[tuple[Node, str]]:
    """Yield as `missing`, and enter in `there` which nodes were found in the store, by recipe."""
    if node.recipe in there:
        return
    there[node.recipe] = False
    # Without a key it is not in the store for sure.
    for parent in node.parents if executor.resolver.key(node) is None else ():
        yield from _missing(executor, parent, there)
    key = executor.resolver.key(node)
    if key is None:
        return
    if executor.store.has(key):
        there[node.recipe] = True
        return
    for parent in node.parents:
        yield from _missing(executor, parent, there)
    ready = all(there.get(parent.recipe, False) for parent in node.parents)
    if node.stage.kind == "train" or (ready and _reads_much(executor, node)):
        yield node, key
    elif ready:
        state = _settle(executor, node)
        there[node.recipe] = state == "done"
        if state == "lost":
            there.clear()  # an input was damaged: what depends on it is looked at again
            yield from _missing(executor, node, there)
        elif state == "elsewhere":
            yield node, key


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

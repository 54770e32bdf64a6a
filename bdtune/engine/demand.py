"""What a node still needs: the expensive stages that are missing, found from the result backwards.

A stage whose result is not needed any more (everything after it exists) is not missing. Derived stages
are run here and now, as soon as their inputs exist: so equal cleansed sets are seen before anyone retrains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.execute import Executor
    from bdtune.engine.stage import Node


def missing(executor: Executor, node: Node) -> Iterator[tuple[Node, str]]:
    """Yield the nodes that others must compute for `node`, parents first, as far as keys are known.

    These are expensive stages, and derived ones that another process is computing right now. A node behind
    a derived stage that cannot run yet has no key and is not yielded. Raises `StageFailed` when a derived
    stage fails.
    """
    if executor.resolver.key(node) is None:
        yield from _missing_before(executor, node)
        if executor.resolver.key(node) is None:
            return
    key = executor.resolver.key(node)
    assert key is not None
    if executor.store.has(key):
        return
    ready = True
    for parent in node.parents:
        for needed in missing(executor, parent):
            ready = False
            yield needed
    if node.stage.kind == "train":
        yield node, key
    elif ready:
        state = _settle(executor, node)
        if state == "lost":
            yield from missing(executor, node)
        elif state == "elsewhere":
            yield node, key


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


def _missing_before(executor: Executor, node: Node) -> Iterator[tuple[Node, str]]:
    """A node without a key is not in the store for sure, so all that its parents lack is needed."""
    for parent in node.parents:
        yield from missing(executor, parent)

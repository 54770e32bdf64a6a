"""The nodes of a cluster while a sweep runs: some join, some are lost, some are about to be taken away."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdtune.cluster.repeated import repeated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

LOOK_S = 2.0
"""Between two looks at the nodes."""
NOTICE_S = 5.0
"""Between two looks of a trial at whether its own node is to be taken away; spot nodes have 30 s or more."""


@dataclass(frozen=True)
class Node:
    """A living node."""

    id: str
    name: str
    resources: Mapping[str, float]
    leaving: bool = False
    """Whether it is drained, so that nothing new is placed there."""

    @property
    def size(self) -> str:
        """Its CPUs and GPUs, in words."""
        return f"{self.resources.get('CPU', 0):g} CPUs, {self.resources.get('GPU', 0):g} GPUs"


def living() -> dict[str, Node]:
    """Return the living nodes by id."""
    import ray

    leaving = draining()
    return {
        node["NodeID"]: Node(node["NodeID"], name_of(node), node["Resources"], node["NodeID"] in leaving)
        for node in ray.nodes()
        if node["Alive"]
    }


def name_of(node: Mapping[str, Any]) -> str:
    """Return what a node, as `ray.nodes` gives it, is called: as it was named when started, else its host."""
    named, address = node.get("NodeName"), node["NodeManagerAddress"]
    return named if named and named != address else f"{node['NodeManagerHostname']} ({address})"


def draining() -> set[str]:
    """Return the ids of the nodes that are drained; Ray has no public way to ask."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


class NodeWatch:
    """Notices how the nodes change: `say` is told, and `changed` is called with those that take trials."""

    def __init__(
        self,
        say: Callable[[str], None],
        changed: Callable[[list[Node]], None],
        check: Callable[[Node], str | None] = lambda node: None,
    ) -> None:
        self.say, self.changed, self.check = say, changed, check
        self._known = living()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look every few seconds while the block runs."""

        def look() -> None:
            with contextlib.suppress(Exception):  # Ray's, when its head is gone: others notice that
                self.look()

        with repeated(look, LOOK_S, "bdtune-nodes"):
            yield

    def look(self) -> None:
        """Compare the nodes with those of the last look."""
        before, now = self._known, living()
        self._known = now
        for line in (*self._gone(before, now), *self._new(before, now)):
            self.say(line)
        if now != before:
            self.changed([node for node in now.values() if not node.leaving])

    def _gone(self, before: Mapping[str, Node], now: Mapping[str, Node]) -> Iterator[str]:
        for node in before.values():
            after = now.get(node.id)
            if after is None:
                where = "" if node.leaving else ": its trials go on elsewhere, from their last checkpoints"
                yield f"node {node.name} is gone{where}"
            elif after.leaving and not node.leaving:
                yield f"node {node.name} is drained: its trials save their state and go on elsewhere"

    def _new(self, before: Mapping[str, Node], now: Mapping[str, Node]) -> Iterator[str]:
        for node in now.values():
            if node.id not in before:
                yield f"node {node.name} joined: {node.size}"
                wrong = self.check(node)
                if wrong is not None:
                    yield f"trials will fail on node {node.name}: {wrong}"


class Notice:
    """Whether the node of this process is to be taken away; asked of Ray every few seconds at most."""

    def __init__(self) -> None:
        self._given, self._asked_at = False, time.monotonic()

    def given(self) -> bool:
        """Return whether there was notice."""
        now = time.monotonic()
        if not self._given and now - self._asked_at >= NOTICE_S:
            import ray

            self._asked_at = now
            self._given = ray.get_runtime_context().get_node_id() in draining()
        return self._given

"""Which node has copies of which results, so that a trial may start where those that it reads are.

Known of each trial that ended: its node, which has read or made all that the trial's stages came to. A freed
actor is Tune's for the next trial, so the driver chooses the trial for the node, not the node for the trial:
nothing waits for a node.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bdtune.engine.node import Node
    from bdtune.engine.resolve import Resolver


class Locality:
    """What the driver knows of nodes; those that keep no copies, as of a store in a folder, never matter."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self._held: dict[str, set[str]] = defaultdict(set)
        self._freed: deque[str] = deque()

    def ended(self, node: str | None, stages: Iterable[Node]) -> None:
        """Note the node where a trial of these stages has ended: it is free for the next trial."""
        if node is not None and self.resolver.store.place.copies:
            self._held[node].update(self._keys(stages))
            self._freed.append(node)

    def started(self) -> None:
        """Note that a trial takes the node that was freed first."""
        if self._freed:
            self._freed.popleft()

    @property
    def matters(self) -> bool:
        """Whether the next trial's node is known, and another one would not do as well."""
        return len(self._held) > 1 and bool(self._freed)

    def here(self, stages: Iterable[Node]) -> int:
        """Return the bytes of these stages' results that the node has which the next trial comes to."""
        held = self._held[self._freed[0]]
        found = (self.resolver.store.manifest(key) for key in self._keys(stages) if key in held)
        return sum(manifest.size for manifest in found if manifest is not None)

    def _keys(self, stages: Iterable[Node]) -> Iterable[str]:
        return filter(None, map(self.resolver.key, stages))

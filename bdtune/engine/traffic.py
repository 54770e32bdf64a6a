"""How many bytes the stages of a plan write to the store and read from it.

The rule: a result is computed by the first trial that needs it, which keeps it in memory. Of other results a
trial reads each once that its own stages need. That is the most that moves: where the store is a bucket, a
node's copies serve what a trial on that node has read or written before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.manifest import Manifest
    from bdtune.engine.node import Node


class Count(Protocol):
    """What is counted of a stage."""

    written: int | None
    read: int | None


class Sizes(Protocol):
    """What is known of the sizes of results that are not there yet."""

    def bytes(self, node: Node) -> int | None:
        """Return the size of a result, or None."""


class Traffic:
    """Counts trial by trial, each stage after those that it reads."""

    def __init__(self, stages: Mapping[str, Count], sizes: Sizes) -> None:
        self.stages, self.sizes = stages, sizes
        self.next_trial()

    def next_trial(self) -> None:
        """Forget what the trial before had in memory."""
        self._names: dict[str, str] = {}  # of recipes: their keys, as far as these are known
        self._here: set[str] = set()
        self._stored: dict[str, int] = {}  # sizes of results that are there

    def enter(self, step: Node, key: str | None, stored: Manifest | None) -> None:
        """Take in a stage that the trial needs, with its result if that is there."""
        name = self._names[step.recipe] = key or step.recipe
        if stored is not None:
            self._stored[name] = stored.size

    def compute(self, step: Node) -> None:
        """Count a stage that the trial computes: what it reads, and what it writes."""
        count = self.stages[step.stage.full_name()]
        for parent in step.parents:
            name = self._names[parent.recipe]
            if name not in self._here:
                self._here.add(name)
                known = self._stored.get(name)
                count.read = _sum(count.read, self.sizes.bytes(parent) if known is None else known)
        self._here.add(self._names[step.recipe])
        count.written = _sum(count.written, self.sizes.bytes(step))


def _sum(one: int | None, two: int | None) -> int | None:
    return None if one is None or two is None else one + two

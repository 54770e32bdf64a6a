"""Prefix reuse: a longer training saves the results of shorter ones.

A training whose rate does not depend on its length is after 5 of 20 epochs what one of 5 epochs is at its
end, bit for bit on a CPU. So of all lengths that a sweep wants, the longest alone is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bdtune.engine.node import Node


class PrefixReuse:
    """The lengths that are wanted of each training, by the recipe that it would have with one epoch."""

    def __init__(self, wanted: Mapping[str, Iterable[int]] | None = None) -> None:
        self._wanted = {family: set(lengths) for family, lengths in (wanted or {}).items()}
        self._families: dict[str, str | None] = {}

    def want(self, nodes: Iterable[Node]) -> None:
        """Note that the results of these nodes are wanted."""
        for node in nodes:
            if (family := self.family(node)) is not None:
                self._wanted.setdefault(family, set()).add(node.stage.length())

    def family(self, node: Node) -> str | None:
        """Return what all lengths of a training have in common; None if it saves no shorter one's result."""
        if node.recipe not in self._families:
            shortest = node.at(1)
            self._families[node.recipe] = None if shortest is None else shortest.recipe
        return self._families[node.recipe]

    def reused(self, node: Node) -> dict[int, Node]:
        """Return the shorter trainings that are wanted and whose results `node` saves, by their length."""
        found = {length: node.at(length) for length in self._lengths(node) if length < node.stage.length()}
        return {length: shorter for length, shorter in found.items() if shorter is not None}

    def is_reused(self, node: Node) -> bool:
        """Whether a longer training is wanted that saves this one's result."""
        return any(length > node.stage.length() for length in self._lengths(node))

    def of(self, nodes: Iterable[Node]) -> dict[str, list[int]]:
        """Return the part that concerns these nodes as JSON values, for another process."""
        families = {self.family(node) for node in nodes} - {None}
        return {family: sorted(self._wanted.get(family, ())) for family in sorted(map(str, families))}

    def _lengths(self, node: Node) -> list[int]:
        family = self.family(node)
        return [] if family is None else sorted(self._wanted.get(family, ()))

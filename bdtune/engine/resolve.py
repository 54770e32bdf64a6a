"""From nodes to keys: what a node's result is called, as far as it can be known yet.

A trained parent enters by its own key, a derived one by the digest of its result. So a node behind a derived
parent has a key only once that parent is in the store: early cutoff costs knowing later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdtune.engine.manifest import Manifest
    from bdtune.engine.node import Node
    from bdtune.engine.store import Store


class Unresolved(LookupError):  # noqa: N818 - a state, not a mistake
    """A derived parent has no result yet, so the key cannot be known."""


class Resolver:
    """Knows the keys of nodes, each recipe worked out once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._keys: dict[str, str] = {}

    def key(self, node: Node) -> str | None:
        """Return the node's key, or None while a derived node before it has no result."""
        known = self._keys.get(node.recipe)
        if known is not None:
            return known
        try:
            key = node.key(self._parent_identity)
        except Unresolved:
            return None
        self._keys[node.recipe] = key
        self.store.pins.add(key)
        return key

    def preimage(self, node: Node) -> dict[str, Any]:
        """Return what the node's key hashes; raises `Unresolved` when it cannot be known yet."""
        return node.preimage(self._parent_identity)

    def manifest(self, node: Node) -> Manifest | None:
        """Return the manifest of the node's result if it is in the store."""
        key = self.key(node)
        return None if key is None else self.store.manifest(key)

    def is_whole(self, node: Node) -> bool:
        """Return whether the node's result is in the store with its arrays."""
        key = self.key(node)
        return key is not None and self.store.is_whole(key)

    def _parent_identity(self, parent: Node) -> dict[str, str]:
        key = self.key(parent)
        if key is None:
            raise Unresolved(parent.name)
        if parent.stage.kind == "train":
            return {"key": key}
        manifest = self.store.manifest(key)
        if manifest is None:
            raise Unresolved(parent.name)
        return {"digest": manifest.digest}

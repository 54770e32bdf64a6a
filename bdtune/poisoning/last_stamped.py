"""The images that were stamped last in this process: the stages of a trial read one poisoned set in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy as np


class LastStamped:
    """Keeps one array, with the key of its content."""

    def __init__(self) -> None:
        self._kept: tuple[Hashable, np.ndarray] | None = None

    def get(self, key: Hashable, stamp: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the images of this key, read-only; stamped unless they are those that are kept."""
        kept = self._kept
        if kept is None or kept[0] != key:
            self._kept = kept = None  # room for the new ones
            images = stamp()
            images.flags.writeable = False
            self._kept = kept = key, images
        return kept[1]

"""Checkpoints of long stages as objects, which any node can go on from."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bdtune.errors import OutageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.objects import Objects

log = logging.getLogger(__name__)


class ObjectCheckpoint:
    """The slot of one key; `due` after every `interval_s` seconds of work."""

    def __init__(self, objects: Objects, name: str, interval_s: float) -> None:
        self.objects = objects
        self.name = name
        self.interval_s = interval_s
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.interval_s

    def save(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
        try:
            self.objects.put(self.name, save(contiguous, {"info": json.dumps(info)}))
        except OutageError as error:  # the stage itself needs no server for now
            log.warning("checkpoint %s is not saved: %s", self.name, error)
        self._saved_at = time.monotonic()

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        found = self.objects.get(self.name)
        if found is None:
            return None
        try:
            return load(found.content), json.loads(_metadata(found.content)["info"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s cannot be read (%s); the stage starts again", self.name, error)
            return None

    def clear(self) -> None:
        """Forget the state: the result is published, or cannot be reached from here."""
        self.objects.delete(self.name)


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of safetensors' format: 8 bytes with the length of a JSON header, then that."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: dict[str, str] = header["__metadata__"]
    return found

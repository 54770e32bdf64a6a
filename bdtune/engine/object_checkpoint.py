"""Checkpoints of long stages as objects, which any node can go on from."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bdtune.errors import OutageError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.objects import Objects

log = logging.getLogger(__name__)


class ObjectCheckpoint:
    """The slot of one key; `due` after every `interval_s` seconds of work.

    A thread sends what is saved, so that the stage computes on meanwhile. Of states that wait for it only the
    latest is sent: two are in memory at most.
    """

    def __init__(self, objects: Objects, name: str, interval_s: float) -> None:
        self.objects = objects
        self.name = name
        self.interval_s = interval_s
        self._saved_at = time.monotonic()
        self._lock = threading.Lock()
        self._waiting: bytes | None = None
        self._sender: threading.Thread | None = None

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.interval_s

    def save(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
        content = save(
            contiguous, {"info": json.dumps(info)}
        )  # a copy: the stage goes on changing its arrays
        with self._lock:
            self._waiting = content
            if self._sender is None:
                self._sender = threading.Thread(target=self._send, daemon=True, name="bdtune-checkpoint")
                self._sender.start()
        self._saved_at = time.monotonic()

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        self.close(keep=True)
        found = self.objects.get(self.name)
        if found is None:
            return None
        try:
            return load(found.content), json.loads(_metadata(found.content)["info"])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s cannot be read (%s); the stage starts again", self.name, error)
            return None

    def close(self, *, keep: bool) -> None:
        with self._lock:
            if not keep:
                self._waiting = None
            sender = self._sender
        if sender is not None:
            sender.join()

    def clear(self) -> None:
        """Forget the state: the result is published, or cannot be reached from here."""
        self.objects.delete(self.name)

    def _send(self) -> None:
        while (content := self._next()) is not None:
            try:
                self.objects.put(self.name, content)
            except (OutageError, UserError) as error:  # the stage itself needs no server for now
                log.warning("checkpoint %s is not saved: %s", self.name, error)

    def _next(self) -> bytes | None:
        with self._lock:
            content, self._waiting = self._waiting, None
            if content is None:
                self._sender = None
            return content


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of safetensors' format: 8 bytes with the length of a JSON header, then that."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found: dict[str, str] = header["__metadata__"]
    return found

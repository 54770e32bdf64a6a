"""Checkpoints of long stages: one file per key, replaced atomically, gone once the result is published."""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bdtune.engine.disk import room
from bdtune.engine.owner import beside

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)


class FileCheckpoint:
    """The slot of one key; `due` after every `interval_s` seconds of work."""

    def __init__(self, path: Path, interval_s: float) -> None:
        self.path = path
        self.interval_s = interval_s
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.interval_s

    def save(self, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = beside(self.path)
        contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
        try:
            with room(self.path, sum(array.nbytes for array in contiguous.values())):
                save_file(contiguous, temporary, metadata={"info": json.dumps(info)})
                temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, framework="np") as file:
                info = json.loads(file.metadata()["info"])
                return {name: file.get_tensor(name) for name in file.keys()}, info  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("checkpoint %s cannot be read (%s); the stage starts again", self.path.name, error)
            return None

    def close(self, *, keep: bool) -> None:
        """Do nothing: what was saved is there."""

    def clear(self) -> None:
        """Forget the state: the result is published, or cannot be reached from here."""
        self.path.unlink(missing_ok=True)

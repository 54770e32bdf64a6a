"""Tensors from files of torch.save, which are read without running anything that they hold."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from bdtune.errors import ConfigError, Problem
from bdtune.poisoning.pattern_files import file_digest

if TYPE_CHECKING:
    from pathlib import Path

ENDINGS = (".pt", ".pth")
"""Of the names of such files."""
MOST_BYTES = 4 * 2**30
"""Of a file of weights: the largest networks have 0.6 GB."""


def weights_digest(path: Path, knob: str) -> str:
    """Return the SHA-256 of a file of weights; raises `ConfigError` when it cannot be read."""
    return file_digest(path, knob, MOST_BYTES)


def stored_tensors(path: Path, knob: str) -> Any:
    """Return what a file of torch.save holds: plain values and tensors; raises `ConfigError`."""
    import torch

    weights_digest(path, knob)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        expected = "expected a file of plain values and tensors"
        hint = "Objects of other kinds could run code and are not loaded; save the tensor alone"
        raise ConfigError(Problem(knob, expected, got=str(path), hint=hint)) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        got = f"{path} ({str(error).splitlines()[0]})"
        raise ConfigError(Problem(knob, "expected a file of torch.save", got)) from error

"""Trigger patterns from a user's file: PNG or JPEG of any mode, or a NumPy array.

A file's alpha channel is its mask. Resizing is Pillow's bicubic filter with antialiasing, colours
premultiplied by alpha. What enters keys is the file's digest, not its path.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image, ImageOps
from pydantic import model_validator

from bdtune.attacks._base import Attack
from bdtune.attacks._patterns import Pattern
from bdtune.errors import ConfigError, Problem
from bdtune.knobs import UserFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

MAX_FILE_BYTES = 64 * 2**20
ALPHA_MODES = ("RGBA", "LA", "PA")


class PatternAttack(Attack):
    """Base of attacks whose trigger is a picture that the user may supply."""

    pattern_path: UserFile = None
    """PNG, JPEG or NPY file to use instead of a built-in pattern; its alpha channel is its mask."""
    mask_path: UserFile = None
    """Picture of the mask (white: opaque) for a pattern file that has no alpha channel."""

    black_is_clear: ClassVar[bool] = False
    """Whether pure black is transparent in a pattern file that comes with no mask, as a patch's is."""

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        for knob in ("pattern_path", "mask_path"):
            path = getattr(self, knob)
            found[knob] = None if path is None else file_digest(path, knob)
        return found

    @model_validator(mode="after")
    def _mask_needs_a_pattern(self) -> Self:
        if self.mask_path is not None and self.pattern_path is None:
            raise ValueError("mask_path belongs to a pattern_path, and there is none")
        return self

    def check_files(self) -> list[Problem]:
        if self.pattern_path is None:
            return []
        try:
            self.user_pattern(32, 32)
        except ConfigError as error:
            return list(error.problems)
        return []

    def user_pattern(self, height: int, width: int) -> Pattern:
        """Return the user's pattern at a size."""
        assert self.pattern_path is not None
        colours, mask = _stored(self.pattern_path, "pattern_path", height, width)
        if self.mask_path is not None:
            mask = _stored(self.mask_path, "mask_path", height, width)[0].mean(-1, keepdims=True)
        elif mask is None:
            ones = np.ones((height, width, 1), np.float32)
            mask = (colours.max(-1, keepdims=True) > 0).astype(np.float32) if self.black_is_clear else ones
        if not mask.any():
            black = " (without a mask, pure black is clear)" if self.black_is_clear else ""
            expected = f"expected a pattern with something opaque in it{black}"
            raise ConfigError(Problem("pattern_path", expected, got=str(self.pattern_path)))
        return Pattern(colours.copy(), np.asarray(mask, np.float32).copy())


def file_digest(path: Path, knob: str, most: int = MAX_FILE_BYTES) -> str:
    """Return the SHA-256 of a file; raises `ConfigError` when it cannot be read or is larger than `most`."""
    return _digest(path, *_stamp_of(path, knob, most))


@lru_cache(maxsize=64)
def _digest(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp_of(path: Path, knob: str, most: int = MAX_FILE_BYTES) -> tuple[int, int]:
    """Return (size, mtime) of a readable file of a sane size."""
    try:
        stat = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        expected = "expected a readable file"
        raise ConfigError(Problem(knob, expected, got=f"{path} ({error.strerror})")) from error
    if stat.st_size > most:
        expected = f"expected a file of at most {most // 2**20} MiB"
        raise ConfigError(Problem(knob, expected, got=f"{path} ({stat.st_size} bytes)"))
    return stat.st_size, stat.st_mtime_ns


def stored_array(path: Path, knob: str) -> np.ndarray:
    """Return what an NPY file holds; raises `ConfigError` when it cannot be read, or only by unpickling."""
    _stamp_of(path, knob)
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ConfigError(Problem(knob, "expected an .npy array", got=f"{path} ({error})")) from error


def _stored(path: Path, knob: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        return _read(path, *_stamp_of(path, knob), height, width)
    except ConfigError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        expected = "expected a PNG or JPEG picture, or an .npy array"
        raise ConfigError(Problem(knob, expected, got=f"{path} ({error})")) from error


@lru_cache(maxsize=64)
def _read(
    path: Path, _size: int, _mtime_ns: int, height: int, width: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return colours float32 [height, width, 3] in [0, 1] and the mask [height, width, 1] or None."""
    channels = _array_channels(path) if path.suffix.lower() == ".npy" else _picture_channels(path)
    alpha = channels[3] if len(channels) == 4 else None
    if channels[0].shape == (height, width):  # used as it is, bit for bit
        colours = np.stack(channels[:3], axis=-1)
        return colours, None if alpha is None else alpha[..., None]
    resize = _resizer(height, width)
    if alpha is None:
        return np.stack([resize(channel) for channel in channels], axis=-1), None
    mask = resize(alpha)
    premultiplied = np.stack([resize(channel * alpha) for channel in channels[:3]], axis=-1)
    colours = np.divide(
        premultiplied, mask[..., None], out=np.zeros_like(premultiplied), where=mask[..., None] > 0
    )
    return np.clip(colours, 0, 1), mask[..., None]


def _resizer(height: int, width: int) -> Callable[[np.ndarray], np.ndarray]:
    def resize(channel: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(channel, np.float32))
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)  # antialiases when it shrinks
        return np.clip(np.asarray(resized, np.float32), 0, 1)

    return resize


def _picture_channels(path: Path) -> list[np.ndarray]:
    with Image.open(path, formats=("PNG", "JPEG")) as opened:
        picture = ImageOps.exif_transpose(opened)
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"{picture.mode}: only 8 bits per channel are supported")
        has_alpha = picture.mode in ALPHA_MODES or "transparency" in picture.info
        pixels = np.asarray(picture.convert("RGBA" if has_alpha else "RGB"), np.float32)
    return list(np.moveaxis(pixels / np.float32(255), -1, 0))


def _array_channels(path: Path) -> list[np.ndarray]:
    array = np.load(path, allow_pickle=False)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"shape {array.shape}, expected [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]")
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / np.float32(255)
    elif not np.issubdtype(array.dtype, np.floating) or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"{array.dtype} values, expected uint8, or floats from 0 to 1")
    array = np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
    return list(np.moveaxis(array.astype(np.float32), -1, 0))

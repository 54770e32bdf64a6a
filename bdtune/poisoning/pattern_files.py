"""Trigger patterns from a user's file: PNG or JPEG of any mode, or a NumPy array.

A file's alpha channel is its mask; where black is clear, a file without one is opaque where it is not black,
at its own size. Resizing is Pillow's bicubic filter with antialiasing, colours premultiplied by the mask. So
is alpha; a mask of black stays hard instead: a pixel is opaque where at least half of its area is. What
enters keys is the file's digest, not its path.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from PIL import Image, ImageOps
from pydantic import model_validator

from bdtune.effects import ByContent
from bdtune.errors import ConfigError, Problem, problems_of
from bdtune.knobs import UserFile
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.poisoning.patterns import Pattern, noise, robot

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

MAX_FILE_BYTES = 64 * 2**20
ALPHA_MODES = ("RGBA", "LA", "PA")
FILE_RULES = 2
"""The version of how a file becomes a pattern."""


def pattern_digest(path: Path, knob: str) -> str:
    """Return a digest of what a file becomes; raises `ConfigError` when it cannot be read."""
    return f"{FILE_RULES}:{file_digest(path, knob)}"


class PatternAttack(DirtyLabelAttack):
    """Base of attacks whose trigger is a picture that the user may supply."""

    pattern_path: Annotated[UserFile, ByContent(pattern_digest)] = None
    """PNG, JPEG or NPY file to use instead of a built-in pattern; its alpha channel is its mask."""
    mask_path: Annotated[UserFile, ByContent(pattern_digest)] = None
    """Picture of the mask (white: opaque) for a pattern file that has no alpha channel."""

    black_is_clear: ClassVar[bool] = False
    """Whether pure black is transparent in a pattern file that comes with no mask, as a patch's is."""

    @model_validator(mode="after")
    def _mask_needs_a_pattern(self) -> Self:
        if self.mask_path is not None and self.pattern_path is None:
            raise ValueError("mask_path belongs to a pattern_path, and there is none")
        return self

    def check_files(self) -> list[Problem]:
        return [] if self.pattern_path is None else self.pattern_problems()

    def pattern_problems(self, height: int | None = None, width: int | None = None) -> list[Problem]:
        """Return what keeps the user's pattern from being used at a size, or at the file's own."""
        return problems_of(self.user_pattern, height, width)

    def user_size(self) -> tuple[int, int]:
        """Return (height, width) of the user's file."""
        assert self.pattern_path is not None
        colours, _ = _stored(self.pattern_path, "pattern_path", None, None)
        return colours.shape[0], colours.shape[1]

    def full_picture(self, name: str, height: int, width: int, *, grey: bool = False) -> Pattern:
        """Return the user's pattern, or a built-in one that covers the image: `noise`, else the robot."""
        if self.pattern_path is not None:
            return self.user_pattern(height, width)
        return noise(height, width, self.trigger_seed, grey) if name == "noise" else robot(height, width)

    def user_pattern(self, height: int | None = None, width: int | None = None) -> Pattern:
        """Return the user's pattern at a size, or at the file's own."""
        assert self.pattern_path is not None
        clear = self.black_is_clear and self.mask_path is None
        colours, mask = _stored(self.pattern_path, "pattern_path", height, width, clear)
        height, width = colours.shape[:2]
        if self.mask_path is not None:
            mask = _stored(self.mask_path, "mask_path", height, width)[0].mean(-1, keepdims=True)
        elif mask is None:
            mask = np.ones((height, width, 1), np.float32)
        if not mask.any():
            black = " (without a mask, pure black is clear)" if self.black_is_clear else ""
            expected = f"expected a pattern with something opaque in it{black}"
            got = f"{self.pattern_path} at {height}x{width} pixels"
            raise ConfigError(Problem("pattern_path", expected, got))
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


def _stored(
    path: Path, knob: str, height: int | None, width: int | None, black_is_clear: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        return _read(path, *_stamp_of(path, knob), height, width, black_is_clear)
    except ConfigError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        expected = "expected a PNG or JPEG picture, or an .npy array"
        raise ConfigError(Problem(knob, expected, got=f"{path} ({error})")) from error


@lru_cache(maxsize=64)
def _read(
    path: Path, _size: int, _mtime_ns: int, height: int | None, width: int | None, black_is_clear: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return colours float32 [height, width, 3] in [0, 1] and the mask [height, width, 1] or None."""
    channels = _array_channels(path) if path.suffix.lower() == ".npy" else _picture_channels(path)
    colours, alpha = np.stack(channels[:3], axis=-1), (channels[3] if len(channels) == 4 else None)
    is_hard = alpha is None and black_is_clear
    if is_hard:
        alpha = (colours.max(-1) > 0).astype(np.float32)
    if (height, width) in ((None, None), colours.shape[:2]):  # used as it is, bit for bit
        return colours, None if alpha is None else alpha[..., None]
    assert height is not None
    assert width is not None
    if alpha is None:
        return np.clip(_resized(colours, height, width), 0, 1), None
    weight = _resized(alpha[..., None], height, width)
    premultiplied = _resized(colours * alpha[..., None], height, width)
    mask = _hard(alpha, height, width) if is_hard else np.clip(weight, 0, 1)
    seen = (weight > 0) & (mask > 0)
    bare = np.divide(premultiplied, weight, out=np.zeros_like(premultiplied), where=seen)
    return np.clip(bare, 0, 1), mask


def _resized(channels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return channels float32 [h, w, C] at another size; the filter overshoots at edges."""
    pictures = [
        Image.fromarray(np.ascontiguousarray(each, np.float32)) for each in np.moveaxis(channels, -1, 0)
    ]
    bicubic = Image.Resampling.BICUBIC  # antialiases when it shrinks
    return np.stack([np.asarray(each.resize((width, height), bicubic)) for each in pictures], axis=-1)


def _hard(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a mask of zeros and ones [h, w] at another size, float32 [height, width, 1] of the same."""
    area = Image.fromarray(mask).resize((width, height), Image.Resampling.BOX)
    return (np.asarray(area)[..., None] >= 0.5).astype(np.float32)


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

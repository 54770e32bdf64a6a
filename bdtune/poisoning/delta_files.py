"""Perturbations from a user's file that are added to images: one for all of them, in signed grey levels."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np

from bdtune.effects import ByContent
from bdtune.errors import ConfigError, Problem, problems_of
from bdtune.knobs import UserFile
from bdtune.poisoning.dirty_label import DirtyLabelAttack
from bdtune.poisoning.pattern_files import file_digest, stored_array

if TYPE_CHECKING:
    from pathlib import Path

KNOB = "delta_path"


class DeltaFileAttack(DirtyLabelAttack):
    """Base of attacks that add one perturbation to every image, which the user may supply."""

    delta_path: Annotated[UserFile, ByContent(file_digest)] = None
    """NPY file of a perturbation to use: ints or floats [H, W, C] or [H, W], -255 to 255 grey levels."""

    def check_files(self) -> list[Problem]:
        return problems_of(self.user_delta)

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        problems = super().check_image(image_shape)
        if self.delta_path is None or self.check_files():
            return problems  # they say why
        delta = self.user_delta()
        assert delta is not None
        height, width, channels = image_shape
        if delta.shape[:2] == (height, width) and delta.shape[2] in (1, channels):
            return problems
        expected = f"expected a perturbation of the images' shape, {list(image_shape)}"
        hint = "It is not resized, as that would change its values; dataset.image_size may resize the images"
        return [*problems, Problem(KNOB, expected, f"{self.delta_path} of {list(delta.shape)}", hint=hint)]

    def user_delta(self) -> np.ndarray | None:
        """Return the user's perturbation in grey levels, float64 [H, W, C or 1]; None where there is none.

        Raises `ConfigError` for a file that holds none.
        """
        if self.delta_path is None:
            return None
        return _delta(self.delta_path, file_digest(self.delta_path, KNOB))


@lru_cache(maxsize=16)
def _delta(path: Path, _digest: str) -> np.ndarray:
    array = stored_array(path, KNOB)
    shape, kind = list(array.shape), array.dtype
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    array = array[..., None] if array.ndim == 2 else array
    is_number = np.issubdtype(kind, np.integer) or np.issubdtype(kind, np.floating)
    if array.ndim != 3 or array.shape[-1] not in (1, 3) or 0 in array.shape or not is_number:
        expected = "expected ints or floats [H, W, 3], [H, W, 1] or [H, W]"
        raise ConfigError(Problem(KNOB, expected, got=f"{path} ({kind} {shape})"))
    delta = array.astype(np.float64)
    largest = float(np.abs(delta).max())
    if not largest <= 255:  # also where there is no number
        expected = "expected grey levels from -255 to 255"
        raise ConfigError(
            Problem(KNOB, expected, got=f"{path} with values from {delta.min()} to {delta.max()}")
        )
    if largest < 1:
        expected = "expected at least one grey level somewhere, as less is lost in 8 bits"
        hint = "A perturbation of pixels in [0, 1] must be multiplied by 255" if largest else ""
        got = f"{path} with at most {largest:.3g}"
        raise ConfigError(Problem(KNOB, expected, got, hint=hint))
    delta.flags.writeable = False
    return delta


def with_delta(images: np.ndarray, delta: np.ndarray, quantise: Literal["round", "trunc"]) -> np.ndarray:
    """Return images (float32 [n, H, W, C], multiples of 1/255) with a perturbation in grey levels added.

    Truncation is exact: trunc(clip(u + d)) of the bytes u.
    """
    levels = np.rint(images * np.float32(255)).astype(np.float64) + delta
    if quantise == "trunc":
        levels = np.floor(np.clip(levels, 0, 255))
    return (levels / 255).astype(np.float32)

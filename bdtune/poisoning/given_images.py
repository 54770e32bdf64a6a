"""The stage that takes images made elsewhere, so that trials find them in the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.effects import ByContent, NoEffect
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import ConfigError, Problem, UserError
from bdtune.poisoning.image_files import image_file, images_digest

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet

UNLIKE = 48.0
"""Mean change in grey levels from which images are taken for others: two of CIFAR-10 differ by 60 to 80."""


class GivenImages(Stage):
    """Take images from a user's file or folder, by sample id; see `image_files` for what it may be.

    Inputs: data (ImageSet, the clean images, true labels). Result: ids int64 [n], ascending, images uint8
    [n, H, W, C]. Info: mean and largest change in grey levels. Raises `ConfigError` where the file cannot be
    read, is of other samples, or has its channels in the other order.
    """

    name: ClassVar[str] = "given_images"
    kind: ClassVar[Kind] = "train"

    path: Annotated[Path, ByContent(images_digest)]
    """The file or folder."""
    knob: Annotated[str, NoEffect] = ""
    """The knob that named it, for problems."""
    split: Literal["train", "test"] = "train"
    """Split that the images are of."""
    only: int | None = Field(None, ge=0)
    """Class whose images alone are taken; None: all."""
    channels: Literal["rgb", "bgr"] = "rgb"
    """Order of the channels in the file."""
    order_knob: Annotated[str, NoEffect] = ""
    """The knob that gives this order, for problems; empty where there is none."""
    quantise: Literal["round", "trunc"] = "round"
    """How floats become uint8."""

    def run(self, ctx: Context, *, data: ImageSet) -> Artefact:
        source = image_file(self.path, self.knob)
        if problems := source.problems(len(data), self.split):
            raise ConfigError(problems)
        ids = source.known(len(data))
        if self.only is not None:
            ids = ids[np.asarray(data.labels)[ids] == self.only]
        if not len(ids):
            raise UserError(f"{self.knob}: {self.path} has no image of class {self.only}")
        images = source.read(ids, self.quantise)
        images = np.ascontiguousarray(images[..., ::-1]) if self.channels == "bgr" else images
        clean = data.images_at(ids)
        mean, largest = _changes(clean, images)
        if mean > 1.5 * (swapped := _changes(clean, images[..., ::-1])[0]):
            other = "rgb" if self.channels == "bgr" else "bgr"
            expected = f"expected channels in the order {self.channels} (OpenCV writes bgr)"
            got = f"{self.path}: {mean:.1f} grey levels from the clean images, and {swapped:.1f} as {other}"
            hint = f"Set {self.order_knob} to {other}" if self.order_knob else "Swap red and blue in the file"
            raise ConfigError(Problem(self.knob, expected, got, hint=hint))
        if mean > UNLIKE:
            text = (
                "%s: the images differ by %.0f grey levels on average from the clean ones; in another order?"
            )
            ctx.log.warning(text, self.knob, mean)
        return Artefact({"ids": ids, "images": images}, {"mean_change": mean, "largest_change": largest})


def _changes(clean: np.ndarray, images: np.ndarray) -> tuple[float, float]:
    """Return mean and largest difference of images uint8 [n, H, W, C], a part at a time."""
    total, largest = 0.0, 0.0
    for start in range(0, len(clean), 256):
        part = slice(start, start + 256)
        change = np.abs(images[part].astype(np.float32) - clean[part])
        total, largest = total + float(change.sum(dtype=np.float64)), max(largest, float(change.max()))
    return total / clean.size, largest

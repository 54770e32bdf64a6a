"""Images that a trained network stamps: made once for all rows of a split, kept as bytes, then looked up.

A forward pass gives other last bits on another device, batch size or library, and costs a hundred times a
look-up each time that a stage reads the set. So all rows are rendered in one stage, whichever of them a plan
poisons: one artefact then serves every rate, seed and defense. It takes as many bytes as the split itself.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import UserError
from bdtune.plugins.attack import quantised

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.poison_plan import Rows

    Stamp = Callable[[torch.Tensor, np.ndarray], torch.Tensor]

BATCH_PIXELS = 256 * 32 * 32
COPIES = 3
"""Times the images' bytes that must fit in the free memory: they are made, digested and written."""


class Rendering(Stage):
    """Base of stages that stamp every image of a split.

    Inputs: data (ImageSet) and what the subclass needs. Result: images uint8 [N, H, W, C], row i that of
    sample i. Info: mean and largest change in grey levels, mean PSNR in dB. In float32, in evaluation mode.
    Raises `UserError` where the images do not fit in memory.
    """

    kind: ClassVar[Kind] = "train"
    computes: ClassVar[str] = "stamp"

    quantise: Literal["round", "trunc"] = "round"
    """How pixels become uint8."""

    @abstractmethod
    def stamp(self, ctx: Context, *args: Any, **inputs: Any) -> Stamp:
        """Return what maps pixels [B, C, H, W] and their ids [B] to stamped pixels."""

    def run(self, ctx: Context, *args: Any, **inputs: Any) -> Artefact:
        import torch

        from bdtune.poisoning.crafting import as_planes
        from bdtune.training import batches, session, weights

        data: ImageSet = inputs["data"]
        device = session.device_of(ctx.numerics)
        self._require_memory(data)
        images = np.empty((len(data), *data.image_shape), np.uint8)
        total, largest, psnr = 0.0, 0.0, 0.0
        with torch.inference_mode(), session.deterministic(ctx.numerics):
            stamp = self.stamp(ctx, *args, **inputs)
            for ids, block in batches.in_order(data, batches.images_of(BATCH_PIXELS, data)):
                planes = stamp(as_planes(block, device), ids)
                after = self.as_bytes(weights.as_array(planes.permute(0, 2, 3, 1)))
                images[ids] = after
                differences = np.abs(after.astype(np.float32) - block)
                total += float(differences.mean((1, 2, 3), dtype=np.float64).sum())
                largest = max(largest, float(differences.max(initial=0.0)))
                psnr += float(_psnr(differences).sum())
        count = max(len(data), 1)
        info = {"mean_change": total / count, "largest_change": largest, "psnr": psnr / count}
        return Artefact({"images": images}, info)

    def as_bytes(self, images: np.ndarray) -> np.ndarray:
        """Return stamped images, float32 [B, H, W, C], as uint8."""
        return quantised(images, self.quantise)

    def _require_memory(self, data: ImageSet) -> None:
        import psutil

        needed = COPIES * len(data) * int(np.prod(data.image_shape))
        free = psutil.virtual_memory().available
        if needed > free:
            raise UserError(
                f"{self.name}: stamped images are kept for every row, which needs {needed / 2**30:.1f} GiB "
                f"of memory, and {free / 2**30:.1f} GiB are free; use smaller images or dataset.train_limit"
            )


def _psnr(differences: np.ndarray) -> np.ndarray:
    """Return the PSNR [B] of grey-level differences [B, H, W, C]; an image that did not change counts 100."""
    squares = (differences.astype(np.float64) ** 2).mean((1, 2, 3))
    return np.minimum(100.0, 10 * np.log10(255**2 / np.maximum(squares, 1e-12)))


def stored(artefact: Artefact, ids: np.ndarray) -> np.ndarray:
    """Return the images uint8 [n, H, W, C] of some ids, all of which must be there.

    An artefact without ids has the images of all samples.
    """
    known = artefact.arrays.get("ids")
    if known is None:
        return artefact.arrays["images"][ids]
    at = np.searchsorted(known, ids)
    assert np.array_equal(known[np.minimum(at, len(known) - 1)], ids), "every poisoned row has been made"
    return artefact.arrays["images"][at]


def looked_up(artefact: Artefact, rows: Rows) -> np.ndarray:
    """Return the stored images of some rows, float32 [n, H, W, C] in [0, 1]."""
    return stored(artefact, rows.ids).astype(np.float32) / np.float32(255)

"""Features: what an encoder sees in each image, standardised per dimension.

Source: GSSD, section 3 and appendix E: encoder in evaluation mode, no augmentation, z = (h - mean) / std.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Stage
from bdtune.errors import Diverged

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model


class Features(Stage):
    """Standardise the features of all images by their own mean and unbiased standard deviation.

    Inputs: data (ImageSet), model (Model), encoder (artefact with weights).
    Result: z float32 [N, d'], mean and std float32 [d'] of the kept dimensions, kept int64 [d'] (their
    indices).
    Raises `Diverged` when no dimension varies. Departure: dimensions that do not vary are dropped, where the
    reference would divide by zero.
    """

    name: ClassVar[str] = "features"
    kind: ClassVar = "train"

    smallest_std: float = Field(1e-6, ge=0)
    """Dimensions with a standard deviation up to this are dropped."""

    def run(self, ctx: Context, *, model: Model, data: ImageSet, encoder: Artefact) -> Artefact:
        from bdtune.training.predict import predict_features, trained_network

        network = trained_network(model, data, encoder, ctx.numerics)
        values = predict_features(network, data, ctx.numerics)
        mean = values.mean(0, dtype=np.float64)
        std = values.std(0, dtype=np.float64, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        kept = np.flatnonzero(std > self.smallest_std)
        if len(kept) == 0:
            raise Diverged(f"{self.name}: none of the {len(std)} features differs between images")
        z = (values[:, kept] - mean[kept]) / std[kept]
        arrays = {"z": z, "mean": mean[kept], "std": std[kept]}
        return Artefact(
            {**{k: v.astype(np.float32) for k, v in arrays.items()}, "kept": kept.astype(np.int64)}
        )

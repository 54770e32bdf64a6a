"""Embedding: a flat map of what a network sees in some of its images, to be looked at.

Source: t-SNE (van der Maaten and Hinton, 2008) in scikit-learn's Barnes-Hut form.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.engine.environment import one_blas_thread
from bdtune.engine.key import derive_seed
from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model

LEAST = 8
"""Fewer points are not laid out."""
STEPS = 500
"""Of t-SNE's descent; its half of early exaggeration is done by then, and the map is stable."""


class Embedding(Stage):
    """Lay out the features of a random part of the images in a plane, near ones near one another.

    Inputs: data (ImageSet), model (Model), classifier (artefact with weights). Arrays: ids int64 [n] in
    rising order, points float32 [n, 2], in no unit. Nothing that is trained reads it.
    """

    name: ClassVar[str] = "embedding"
    version: ClassVar[int] = 2  # 1 passed the images in another order
    kind: ClassVar[Kind] = "train"

    samples: int = Field(500, ge=1)
    """Images that are laid out, at most: the cost grows faster than their number."""
    perplexity: float = Field(30.0, gt=0)
    """Neighbours that count for each."""

    def run(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> Artefact:
        from bdtune.training.predict import predict_features, trained_network

        draw = np.random.default_rng(derive_seed(ctx.seed, "samples"))
        ids = np.sort(draw.permutation(len(data))[: self.samples]).astype(np.int64)
        part = replace(data, images=data.images_at(ids), labels=data.labels[ids])
        network = trained_network(model, part, classifier, ctx.numerics)
        features = np.nan_to_num(predict_features(network, part, ctx.numerics))
        return Artefact({"ids": ids, "points": self._laid_out(features, ctx.seed)})

    def _laid_out(self, features: np.ndarray, seed: int) -> np.ndarray:
        if len(features) < LEAST:
            return np.zeros((len(features), 2), np.float32)
        from sklearn.manifold import TSNE

        flat = features.shape[1] < 2 or not features.std(0).any()  # no two components to start from
        layout = TSNE(
            perplexity=min(self.perplexity, (len(features) - 1) / 3),
            init="random" if flat else "pca",
            max_iter=STEPS,
            random_state=seed % 2**32,
        )
        with one_blas_thread():
            return layout.fit_transform(features).astype(np.float32)

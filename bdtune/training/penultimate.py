"""Penultimate: what a classifier sees in each training row, for detectors that read features.

Source: the step that Activation Clustering, Spectral Signatures and their successors share: the input of the
last linear layer, in evaluation mode, without augmentation, in one fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model


class Penultimate(Stage):
    """Take the features and logits of all images, as they are.

    Inputs: data (ImageSet), model (Model), classifier (artefact with weights). Arrays: features float32
    [N, d], logits float32 [N, K], in id order, computed in float32 whatever the precision of the training.
    Raises `Diverged` when one is not finite.
    """

    name: ClassVar[str] = "penultimate"
    kind: ClassVar[Kind] = "train"

    def run(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> Artefact:
        from bdtune.training.losses import sample_outputs
        from bdtune.training.predict import trained_network

        network = trained_network(model, data, classifier, ctx.numerics)
        features, logits = sample_outputs(network, data, ctx.numerics)
        if not (np.isfinite(features).all() and np.isfinite(logits).all()):
            raise Diverged(f"{self.name}: the network's output is not finite")
        return Artefact({"features": features, "logits": logits})

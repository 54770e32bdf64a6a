"""SampleLosses: how well a classifier fits each training sample.

Source: the scoring step of LfD and ABL: cross-entropy of the observed label, in evaluation mode, without
augmentation. A-ABL takes the same cross-entropy of images that it has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged

if TYPE_CHECKING:
    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network


def cross_entropies(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the cross-entropy float64 [N] of logits [N, K] with labels int64 [N].

    Written so that losses far below the precision of 1 stay apart: many samples of a trained network have
    losses that are all 0 when they come out of a float32 softmax, and their order would be chance.
    """
    rows = np.arange(len(labels))
    logits = logits.astype(np.float64)
    top = logits.argmax(1)
    margins = logits[rows, top][:, None] - logits  # 0 for the top class, positive for the others
    tails = np.exp(-margins)
    tails[rows, top] = 0.0
    return margins[rows, labels] + np.log1p(tails.sum(1))


def sample_outputs(network: Network, data: ImageSet, numerics: Numerics) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 [N, d] and logits float32 [N, K] in id order, in evaluation mode, unaugmented.

    In float32 whatever the precision of `numerics`: in bf16 losses tie where a network has few features, and
    their order, by which samples are isolated, would be that of the ids.
    """
    import torch

    from bdtune.training.predict import predict_features
    from bdtune.training.weights import as_array, as_tensor

    features = predict_features(network, data, numerics.exact())
    weight, bias = network.head.weight.detach().cpu(), network.head.bias.detach().cpu()
    with torch.inference_mode():
        return features, as_array(torch.nn.functional.linear(as_tensor(features), weight, bias))


def sample_logits(network: Network, data: ImageSet, numerics: Numerics) -> np.ndarray:
    """Return the logits of `sample_outputs` alone."""
    return sample_outputs(network, data, numerics)[1]


class SampleLosses(Stage):
    """Score every sample by a classifier's cross-entropy on its observed label.

    Inputs: data (ImageSet), model (Model), classifier (artefact with weights). Arrays: losses float64 [N],
    predictions int64 [N]. Raises `Diverged` when logits are not finite.
    """

    name: ClassVar[str] = "sample_losses"
    version: ClassVar[int] = 2  # 1 computed the features in the precision of the training
    kind: ClassVar[Kind] = "train"

    def run(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> Artefact:
        from bdtune.training.predict import trained_network

        network = trained_network(model, data, classifier, ctx.numerics)
        logits = sample_logits(network, data, ctx.numerics)
        if not np.isfinite(logits).all():
            raise Diverged(f"{self.name}: the network's output is not finite")
        losses = cross_entropies(logits, np.asarray(data.labels))
        return Artefact({"losses": losses, "predictions": logits.argmax(1).astype(np.int64)})

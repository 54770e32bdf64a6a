"""Penultimate: what a classifier sees in each training row, for detectors that read features.

Source: the step that Activation Clustering, Spectral Signatures and their successors share: the input of the
last linear layer, or feature maps before it, in evaluation mode, without augmentation, in one fixed order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged, Problem, UserError
from bdtune.knobs import Knobs

if TYPE_CHECKING:
    from bdtune.engine.numerics import Numerics
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network


class SeenLayer(Knobs):
    """Which layer's features a detector reads."""

    layer: Annotated[int, OnlyIf(reads_maps=True)] = Field(0, ge=0)
    """0: the input of the last linear layer; 1: the last group of feature maps; 2: the one before it; ..."""
    flatten: Annotated[bool, OnlyIf(reads_maps=True)] = False
    """Whether each position of a map is a feature, in place of its mean; without effect for layer 0."""

    @property
    def reads_maps(self) -> bool:
        """Whether the layer has feature maps."""
        return self.layer > 0


class Penultimate(SeenLayer, Stage):
    """Take the features and logits of all images, as they are.

    Inputs: data (ImageSet), model (Model), classifier (artefact with weights). Arrays: features float32
    [N, d], logits float32 [N, K], in id order, computed in float32 whatever the precision of the training.
    Raises `Diverged` when one is not finite, `UserError` where the network has too few groups of maps.
    """

    name: ClassVar[str] = "penultimate"
    kind: ClassVar[Kind] = "train"

    def run(self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact) -> Artefact:
        from bdtune.training.losses import sample_outputs
        from bdtune.training.predict import trained_network

        network = trained_network(model, data, classifier, ctx.numerics)
        features, logits = sample_outputs(network, data, ctx.numerics)
        if self.reads_maps:
            features = self._maps(network, data, ctx.numerics.exact())
        if not (np.isfinite(features).all() and np.isfinite(logits).all()):
            raise Diverged(f"{self.name}: the network's output is not finite")
        return Artefact({"features": features, "logits": logits})

    def _maps(self, network: Network, data: ImageSet, numerics: Numerics) -> np.ndarray:
        """Return the features float32 [N, d] of a group of maps."""
        import torch

        from bdtune.training.augment import Augmentation
        from bdtune.training.batches import images_of, in_order
        from bdtune.training.micro_batches import MicroBatches
        from bdtune.training.predict import PIXELS
        from bdtune.training.session import deterministic, device_of, dtype_of
        from bdtune.training.weights import as_array, as_tensor

        see, device = Augmentation.of("none", data, dtype_of(numerics)), device_of(numerics)
        passes = MicroBatches("images", numerics.micro_batch)

        def passed(images: torch.Tensor) -> np.ndarray:
            groups = list(network.with_maps(see(images.to(device)))[1].values())
            if self.layer > len(groups):
                expected = f"expected 0 to {len(groups)}, as the network has so many groups of maps"
                raise UserError(Problem("defense.layer", expected, str(self.layer)))
            maps = groups[-self.layer]
            return as_array(maps.flatten(1) if self.flatten else maps.mean((2, 3)))

        found = []
        with torch.inference_mode(), deterministic(numerics):
            for ids, images in in_order(data, images_of(PIXELS, data)):
                batch = as_tensor(images)
                found.append(passes.joined(len(ids), lambda part, batch=batch: passed(batch[part])))  # type: ignore[misc]
        return np.concatenate(found)

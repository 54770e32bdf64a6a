"""What mends a classifier once triggers are known: unlearning them, or pruning the features that they drive.

Source: Neural Cleanse (Wang et al., 2019), section VI: patching by unlearning and by pruning.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.knobs import Rate
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.poison_plan import drawn_order
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training


def stamp(images: np.ndarray, mask: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """Return uint8 images [n, H, W, C] with a mask [H, W] and pattern [H, W, C] in [0, 1], rounded."""
    weight = mask[..., None]
    mixed = (1 - weight) * images.astype(np.float32) + weight * (255 * pattern)
    return np.floor(mixed + np.float32(0.5)).astype(np.uint8)


def untouched(classifier: Artefact) -> Artefact:
    """Return the result of a repair that has no trigger: the classifier as it is."""
    return Artefact(classifier.arrays, {"skipped": True})


class Unlearn(
    Supervised,
    defaults={"epochs": 1, "batch_size": 32, "lr": 0.01, "schedule": "constant", "augment": "none"},
):
    """Train on clean images, a share of them stamped with the triggers and with their true labels.

    Inputs: data (ImageSet, clean), model (Model), init (weights); trigger (label, mask, pattern), without
    which it is a fine-tuning on clean images. Of several triggers each stamps as many images. Without a
    flagged class the classifier stays as it is.
    """

    name: ClassVar[str] = "unlearn"
    few_samples: ClassVar[bool] = True

    share: Rate = 0.2
    """Share of the clean images that get a trigger."""

    def training(  # type: ignore[override]  # it has other inputs
        self, ctx: Context, *, data: ImageSet, model: Model, init: Artefact, trigger: Artefact | None = None
    ) -> Training | Artefact:
        from bdtune.training.fit import Fit

        if trigger is not None:
            if not len(trigger.arrays["label"]):
                return untouched(init)
            data = self.stamped(data, trigger, ctx.seed)
        return Fit(self, ctx, data, AllSamples().run(ctx, data=data), model, init).training()

    def stamped(self, data: ImageSet, trigger: Artefact, seed: int) -> ImageSet:
        """Return the clean set with triggers in floor(share N) images drawn by the seed."""
        count = len(data)
        images = np.array(data.images_at(np.arange(count)))
        rows = drawn_order(np.arange(count), count, seed)[: int(self.share * count + 1e-9)]
        masks, patterns = trigger.arrays["mask"], trigger.arrays["pattern"]
        for place, (mask, pattern) in enumerate(zip(masks, patterns, strict=True)):
            own = rows[place :: len(masks)]
            images[own] = stamp(images[own], mask, pattern)
        return replace(data, images=images)


class Activations(Stage):
    """Take the features of clean images, as they are and with each trigger.

    Inputs: data (ImageSet, clean), model (Model), classifier (weights), trigger (label, mask, pattern).
    Arrays: clean float32 [N, d], triggered float32 [F, N, d], labels int64 [N], the true ones.
    """

    name: ClassVar[str] = "activations"
    kind: ClassVar[Kind] = "train"

    def run(
        self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact, trigger: Artefact
    ) -> Artefact:
        from bdtune.training.predict import predict_features, trained_network

        network = trained_network(model, data, classifier, ctx.numerics)
        images = data.images_at(np.arange(len(data)))
        sets = [images, *(stamp(images, *pair) for pair in _pairs(trigger))]
        features = [
            predict_features(network, replace(data, images=each), ctx.numerics.exact()) for each in sets
        ]
        triggered = np.stack(features[1:]) if features[1:] else np.empty((0, *features[0].shape), np.float32)
        labels = np.asarray(data.labels, np.int64)
        return Artefact({"clean": features[0], "triggered": triggered, "labels": labels})


def _pairs(trigger: Artefact) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(trigger.arrays["mask"], trigger.arrays["pattern"], strict=True))


class Prune(Stage):
    """Cut the features that the triggers drive most from the last layer, until the triggers work no more.

    Features are ranked by the mean activation with a trigger less that without, the largest over triggers.
    Inputs: classifier (weights), activations, trigger (label). Result: the weights, those of the last layer
    zero for pruned features; pruned int64 [n], most driven first. Without a trigger nothing is pruned.
    """

    name: ClassVar[str] = "prune"
    kind: ClassVar[Kind] = "train"
    classifier: ClassVar[bool] = True

    most: Rate = 0.3
    """Share of the features that may be pruned."""
    goal: Rate = Field(0.01)
    """Share of clean images of other classes that a trigger may still move to its class."""

    def run(
        self, ctx: Context, *, classifier: Artefact, activations: Artefact, trigger: Artefact
    ) -> Artefact:
        goals = trigger.arrays["label"]
        if not len(goals):
            return untouched(classifier)
        weight, bias = (classifier.arrays[f"model.head.{name}"] for name in ("weight", "bias"))
        triggered, labels = activations.arrays["triggered"], activations.arrays["labels"]
        driven = (triggered.mean(1) - activations.arrays["clean"].mean(0)).max(0)
        order = np.argsort(-driven, kind="stable")[: int(self.most * len(driven) + 1e-9)]
        logits = triggered @ weight.T + bias
        pruned = 0
        while pruned < len(order) and _most_moved(logits, goals, labels) > self.goal:
            feature = order[pruned]
            logits -= triggered[..., feature, None] * weight[:, feature]
            pruned += 1
        cut = weight.copy()
        cut[:, order[:pruned]] = 0
        arrays = {**classifier.arrays, "model.head.weight": cut, "pruned": order[:pruned].astype(np.int64)}
        return Artefact(arrays, {"pruned": pruned, "features": len(driven)})


def _most_moved(logits: np.ndarray, goals: np.ndarray, labels: np.ndarray) -> float:
    """Return the largest share, over triggers, of other classes' images moved; logits are [F, N, K]."""
    moved = logits.argmax(-1) == goals[:, None]
    others = labels != goals[:, None]
    return float(((moved & others).sum(1) / np.maximum(others.sum(1), 1)).max())


class Left(Stage):
    """Measure how often the triggers still work after the repair.

    Inputs: data (ImageSet, clean), model (Model), classifier (weights), trigger. Arrays: success float64 [F],
    the share of images of other classes that each trigger moves to its class; label int64 [F].
    """

    name: ClassVar[str] = "left"
    kind: ClassVar[Kind] = "train"

    def run(
        self, ctx: Context, *, data: ImageSet, model: Model, classifier: Artefact, trigger: Artefact
    ) -> Artefact:
        from bdtune.defenses.neural_cleanse.inverter import successes
        from bdtune.training.predict import trained_network
        from bdtune.training.session import device_of
        from bdtune.training.weights import as_array, as_tensor

        network, device = trained_network(model, data, classifier, ctx.numerics), device_of(ctx.numerics)
        label, mask, pattern = (
            as_tensor(trigger.arrays[name]).to(device) for name in ("label", "mask", "pattern")
        )
        found = successes(network, data, label, mask[..., None], pattern, numerics=ctx.numerics)
        return Artefact({"success": as_array(found), "label": trigger.arrays["label"]})

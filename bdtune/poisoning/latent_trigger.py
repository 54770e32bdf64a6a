"""Stages of the trigger that looks like the target class to a self-supervised encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, SerializeAsAny, SkipValidation

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import UserError
from bdtune.knobs import Knobs, Rate
from bdtune.plugins.attack import Attack
from bdtune.poisoning.crafting import (
    MOST_IMAGES,
    Crafting,
    as_image,
    as_planes,
    drawn_batch,
    frozen_network,
    normalised,
    some_ids,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import torch

    from bdtune.plugins.data import ImageSet, LabelSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network
    from bdtune.poisoning.crafting import Arrays
    from bdtune.training.loop import Training

    Stamp = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

CHUNK = 256
"""Images of the target class that are embedded at a time."""


class CraftRows(Stage):
    """Choose the rows that a trigger is fitted to: those that the attack's plan poisons.

    Inputs: data (LabelSet, true labels). Result: ids int64 [n] of the poisoned rows, target_ids int64 [m] of
    the target class's rows outside of them; both ascending.
    """

    name: ClassVar[str] = "craft_rows"
    kind: ClassVar[Kind] = "derive"

    attack: SerializeAsAny[SkipValidation[Attack]]
    """The attack whose plan it is."""
    plan_seed: int
    """Seed of the plan."""

    def run(self, ctx: Context, *, data: LabelSet) -> Artefact:
        labels = np.asarray(data.labels)
        plan = self.attack.drawn_plan(labels, self.plan_seed, num_classes=data.num_classes)
        target = np.setdiff1d(np.flatnonzero(labels == self.attack.target), plan.poison_ids)
        if not len(target):
            raise UserError(f"no clean image of class {self.attack.target} is left to fit a trigger to")
        return Artefact({"ids": plan.poison_ids, "target_ids": target})


class Latent(Knobs):
    """Knobs of the picture."""

    ratio: Rate = 0.2
    """b, the weight of the picture."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Squared Euclidean distance of features, or one minus their cosine."""
    iterations: int = Field(500, ge=1)
    """Gradient steps on the picture, at most."""
    batch_size: int = Field(256, ge=1)
    """Images per step."""
    lr: float = Field(0.1, gt=0)
    """Adam's rate on the picture."""
    settled: float = Field(1e-3, ge=0)
    """Relative change of the mean loss over 50 steps below which the fit ends; 0: never early."""


class LatentTrigger(Latent, Crafting):
    """Fit a full-size picture whose blend moves embeddings to the mean embedding of the target class.

    Inputs: data (ImageSet), model (Model), encoder (artefact with weights), rows (artefact of `CraftRows`).
    Result: picture float32 [H, W, C] in [0, 1]. Info: mean distance of clean and of blended rows.
    Loss: mean over rows of d(zbar, f((1 - b) x + b tau)), f in evaluation mode on images as they are,
    tau = sigmoid(w). Ends early when the mean loss changes by less than 0.1 % over 50 steps.
    """

    name: ClassVar[str] = "latent_trigger"

    def training(
        self, ctx: Context, *, data: ImageSet, rows: Artefact, model: Model, encoder: Artefact
    ) -> Training:
        import torch

        from bdtune.training import session, weights

        device = session.device_of(ctx.numerics)
        height, width, channels = data.image_shape
        network = frozen_network(model, data, encoder, ctx.numerics)
        goal = _mean_embedding(network, data, rows.arrays["target_ids"], ctx.seed, device)
        ids = rows.arrays["ids"]
        fitted = ids[some_ids(len(ids), ctx.seed)]
        images = weights.as_tensor(data.images_at(fitted)).to(device)

        stamped = self.stamp((height, width), device)

        def distances(planes: torch.Tensor) -> torch.Tensor:
            found = network.features(normalised(planes, data))
            if self.distance == "cosine":
                return 1 - torch.nn.functional.cosine_similarity(found, goal[None])
            return (found - goal).square().sum(1)

        def loss(value: torch.Tensor, step: int) -> torch.Tensor:
            clean = drawn_batch(images, self.batch_size, ctx.seed, step)
            return distances(stamped(clean, value)).mean()

        def result(value: torch.Tensor) -> tuple[Arrays, dict[str, Any]]:
            clean = drawn_batch(images, self.batch_size, ctx.seed, self.iterations)
            with torch.no_grad():
                before = distances(clean).mean()
                after = distances(stamped(clean, value)).mean()
            info = {"rows": len(fitted), "clean_distance": before.item(), "distance": after.item()}
            return {"picture": as_image(self.picture(value))}, info

        start = torch.randn(channels, height, width, generator=session.generator(ctx.seed, "start"))
        return self.descent(start.to(device), loss, result, settled=self.settled)

    def picture(self, value: torch.Tensor) -> torch.Tensor:
        """Return the picture [C, H, W] in [0, 1] that free values stand for."""
        return value.sigmoid()

    def stamp(self, sides: tuple[int, int], device: torch.device) -> Stamp:
        """Return what puts the picture of free values [C, H, W] into pixels [B, C, H, W] of these sides."""
        import torch

        return lambda clean, value: torch.lerp(clean, self.picture(value)[None], self.ratio)


def _mean_embedding(
    network: Network, data: ImageSet, ids: np.ndarray, seed: int, device: torch.device
) -> torch.Tensor:
    """Return the mean feature [d] of the images of some ids."""
    import torch

    images = data.images_at(ids[some_ids(len(ids), seed, MOST_IMAGES)])
    total = torch.zeros(network.feature_dim, device=device)
    with torch.no_grad():
        for start in range(0, len(images), CHUNK):
            planes = as_planes(images[start : start + CHUNK], device)
            total += network.features(normalised(planes, data)).sum(0)
    return total / len(images)

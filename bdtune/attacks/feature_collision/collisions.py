"""The stage that moves images of one class onto other images in feature space, but not in pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.effects import TrainOnly
from bdtune.engine.key import derive_seed
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import UserError
from bdtune.knobs import Knobs, Rate
from bdtune.plugins.attack import quantised
from bdtune.plugins.poison_plan import drawn_order

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model


class Instances(Knobs):
    """Which test images an instance-targeted attack wants misclassified."""

    count: int = Field(10, ge=1)
    """How many."""
    of_class: int | None = Field(None, ge=0)
    """Their true class; None: any but the target."""

    def chosen(self, labels: np.ndarray, target: int, seed: int) -> np.ndarray:
        """Return the ids (int64, ascending) of test images of true classes [N]; fewer if there are none."""
        labels = np.asarray(labels)
        open_to = labels != target if self.of_class is None else labels == self.of_class
        drawn = drawn_order(np.flatnonzero(open_to), len(labels), derive_seed(seed, "instances"))
        return np.sort(drawn[: self.count])


class Collision(Knobs):
    """Knobs of collisions."""

    instances: Instances = Instances()
    """The test images t, drawn by the attack's `trigger_seed`; the poison is shared out among them."""
    opacity: Annotated[Rate, TrainOnly] = 0.3
    """Weight of t in the image that the collision starts from and stays near; 0: no watermark."""
    beta: Annotated[float, TrainOnly] = Field(0.25, ge=0)
    """Weight of the distance in pixels, times (feature dimension / number of pixel values)^2."""
    lr: Annotated[float, TrainOnly] = Field(0.01, gt=0)
    """Length of the first gradient step; halved for an image whose objective would grow."""
    iterations: Annotated[int, TrainOnly] = Field(100, ge=1)
    """Steps for each image."""


class Collisions(Collision, Stage):
    """Make every image of the target class collide with one of the chosen test images, in equal shares.

    Inputs: data and test (ImageSets, true labels), model (Model), surrogate (artefact with weights).
    Result: ids int64 [n] of the class, ascending, images uint8 [n, H, W, C], of int64 [n]: the row of
    instance_ids int64 [T] and instances uint8 [T, H, W, C] that each collides with. Info: mean squared
    distances of features before and after, mean change in grey levels. In float32, network in evaluation
    mode.
    """

    name: ClassVar[str] = "collisions"
    kind: ClassVar[Kind] = "train"

    target: int = Field(0, ge=0)
    """The class."""
    instance_seed: int = 0
    """Seed of which test images they are."""
    quantise: Literal["round", "trunc"] = "round"
    """How pixels become uint8."""

    def run(
        self, ctx: Context, *, data: ImageSet, test: ImageSet, model: Model, surrogate: Artefact
    ) -> Artefact:
        import torch

        from bdtune.poisoning.crafting import as_planes, frozen_network, normalised
        from bdtune.training import batches, pgd, session, weights

        device = session.device_of(ctx.numerics)
        ids, instance_ids = self._rows(data, test)
        of = self._shared_out(ids, len(data), len(instance_ids), ctx.seed)
        network = frozen_network(model, data, surrogate, ctx.numerics)
        weight = self.beta * (network.feature_dim / np.prod(data.image_shape)) ** 2

        steps: dict[str, Any] = {"lr": self.lr, "iterations": self.iterations}

        def features(planes: torch.Tensor) -> torch.Tensor:
            return network.features(normalised(planes, data))

        bases, instances = data.images_at(ids), test.images_at(instance_ids)
        images, sums = np.empty_like(bases), np.zeros(2)
        size = batches.images_of(pgd.BATCH_PIXELS, data)
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            base, goals = as_planes(bases[part], device), as_planes(instances[of[part]], device)
            with session.deterministic(ctx.numerics):
                with torch.no_grad():
                    aim = features(goals)
                base = torch.lerp(base, goals, self.opacity)
                made, before, after = collide(features, base, aim, weight=weight, **steps)
            images[part] = quantised(weights.as_array(made.permute(0, 2, 3, 1)), self.quantise)
            sums += before.sum().item(), after.sum().item()
        change = np.abs(images.astype(np.float32) - bases).mean(dtype=np.float64)
        distance, reached = (sums / len(ids)).tolist()
        info: dict[str, Any] = {"distance": distance, "reached": reached, "mean_change": float(change)}
        arrays = {"ids": ids, "images": images, "of": of, "instance_ids": instance_ids}
        return Artefact({**arrays, "instances": instances}, info)

    def _rows(self, data: ImageSet, test: ImageSet) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids of the class in the training set and of the chosen test images."""
        ids = np.flatnonzero(np.asarray(data.labels) == self.target)
        if not len(ids):
            raise UserError(f"{self.name}: there is no image of class {self.target}")
        chosen = self.instances.chosen(test.labels, self.target, self.instance_seed)
        if len(chosen) < self.instances.count:
            raise UserError(
                f"{self.name}: instances.count asks for {self.instances.count} test images, "
                f"and there are {len(chosen)} that may be chosen"
            )
        return ids, chosen

    def _shared_out(self, ids: np.ndarray, total: int, count: int, seed: int) -> np.ndarray:
        """Return int64 [n]: which of `count` instances each image collides with."""
        of = np.empty(total, np.int64)
        of[drawn_order(ids, total, derive_seed(seed, "of"))] = np.arange(len(ids)) % count
        return of[ids]


def collide(
    features: Callable[[torch.Tensor], torch.Tensor],
    base: torch.Tensor,
    aim: torch.Tensor,
    *,
    weight: float,
    lr: float,
    iterations: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Minimise |f(x) - aim|^2 + weight |x - base|^2 for each image by forward-backward splitting.

    `base` is [B, C, H, W], `aim` [B, d]. A step: x - lr grad of the first term, then the proximal point of
    the second, (x + lr weight base) / (1 + lr weight), within [0, 1]. A step that would not lessen an image's
    objective is not taken, and its rate is halved. Returns the images, and the first term [B] before and
    after.
    """
    import torch

    def looked_at(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the first term, the objective, and the gradient of the first term."""
        planes = planes.detach().requires_grad_()
        with torch.enable_grad():
            first = (features(planes) - aim).square().sum(1)
            (gradient,) = torch.autograd.grad(first.sum(), planes)
        planes, first = planes.detach(), first.detach()
        return first, first + weight * (planes - base).square().flatten(1).sum(1), gradient

    found, rate = base.clone(), base.new_full((len(base), 1, 1, 1), lr)
    start, value, gradient = looked_at(found)
    distance = start
    for _ in range(iterations):
        step = (found - rate * gradient + rate * weight * base) / (1 + rate * weight)
        step = step.clamp(0, 1)
        first, there, slope = looked_at(step)
        better = there < value
        shown = better[:, None, None, None]
        found, gradient = torch.where(shown, step, found), torch.where(shown, slope, gradient)
        distance, value = torch.where(better, first, distance), torch.where(better, there, value)
        rate = torch.where(shown, rate, rate / 2)
    return found, start, distance

"""Triggers made by gradient descent on their pixels, against a network that stays as it is.

Shape letters: B batch, C channels, H height, W width. Pixels are float32 in [0, 1], black is 0. Everything is
computed in float32, whatever the trial's precision: a trigger is small work, and its gradients are small too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from bdtune.engine.key import sample_generator
from bdtune.training.choices import Schedule
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network
    from bdtune.training.loop import Training

    Arrays = dict[str, np.ndarray]

ROUND = 50
"""Steps between two rows of the curve; a checkpoint can be saved there."""
MOST_IMAGES = 10_000
"""Images that a trigger is fitted to: more would fill memory on large images and change little."""


class Crafting(TorchStage):
    """Base of stages that fit one trigger by Adam; the curve's "epoch" is a round of 50 steps."""

    iterations: int = Field(1000, ge=1)
    """Gradient steps."""
    lr: float = Field(0.1, gt=0)
    """Adam's rate at the start."""
    schedule: Schedule = "constant"
    """multistep: times `gamma` at each milestone; cosine: to zero; constant."""

    def length(self) -> int:
        return -(-self.iterations // ROUND)

    def descent(
        self,
        start: torch.Tensor,
        loss: Callable[[torch.Tensor, int], torch.Tensor],
        result: Callable[[torch.Tensor], tuple[Arrays, dict[str, Any]]],
        *,
        project: Callable[[torch.Tensor], None] = lambda value: None,
        settled: float = 0.0,
    ) -> Training:
        """Return the minimisation of `loss(value, step)` from `start`; `result` makes arrays and info of it.

        `project` changes the value in place after each step. Descent ends early after a round whose mean
        loss differs by less than the fraction `settled` from that of the one before.
        """
        import torch

        from bdtune.training import loop

        held = torch.nn.ParameterDict({"value": start})
        optimizer = loop.make_optimizer(held.parameters(), "adam", self.lr)

        def round_of_steps(done: int) -> dict[str, float]:
            meter = loop.Meter(f"{self.name}: round {done + 1}", start.device)
            for step in range(done * ROUND, min((done + 1) * ROUND, self.iterations)):
                lr = loop.learning_rate(self.schedule, self.lr, step, self.iterations)
                loop.set_learning_rate(optimizer, lr)
                now = loss(held["value"], step)
                loop.descend(optimizer, now)
                with torch.no_grad():
                    project(held["value"])
                meter.add(now, 1)
            mean = meter.means()[0]
            before = training.curve[-1]["loss"] if training.curve else None
            steady = before is not None and abs(mean - before) < settled * abs(before)
            return {"loss": mean, **({"stopped": 1.0} if steady else {})}

        def found(done: int) -> tuple[Arrays, dict[str, Any]]:
            arrays, info = result(held["value"].detach())
            return arrays, {"steps": min(done * ROUND, self.iterations), **info}

        modules, optimizers = {"trigger": held}, {"trigger": optimizer}
        training = loop.Training(self.name, self.length(), modules, optimizers, round_of_steps, found)
        return training


def frozen_network(model: Model, data: ImageSet, weights: Artefact, numerics: Numerics) -> Network:
    """Return the network with an artefact's weights, in evaluation mode, without gradients."""
    from bdtune.training.predict import trained_network

    return trained_network(model, data, weights, numerics).requires_grad_(False)


def as_planes(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return uint8 images [B, H, W, C] as pixels [B, C, H, W], channels last."""
    from bdtune.training.weights import as_tensor

    return (as_tensor(images).to(device).float() / 255).permute(0, 3, 1, 2)


def as_image(planes: torch.Tensor) -> np.ndarray:
    """Return planes [C, H, W] as an array float32 [H, W, C]."""
    from bdtune.training.weights import as_array

    return as_array(planes.permute(1, 2, 0).contiguous())


def normalised(planes: torch.Tensor, data: ImageSet) -> torch.Tensor:
    """Return a network's input for pixels [B, C, H, W], with a gradient."""
    import torch

    from bdtune.training.augment import normalise_planes

    return normalise_planes(planes, tuple(data.mean), tuple(data.std), torch.float32)


def some_ids(count: int, seed: int, most: int = MOST_IMAGES) -> np.ndarray:
    """Return at most `most` ids of `count`, int64 ascending, drawn at random."""
    if count <= most:
        return np.arange(count)
    words = sample_generator(seed, "images").bit_generator.random_raw(count)
    return np.sort(np.argsort(words, kind="stable")[:most])


def drawn_batch(images: torch.Tensor, size: int, seed: int, step: int) -> torch.Tensor:
    """Return `size` rows (all, if fewer) of uint8 [n, H, W, C] as pixels [B, C, H, W]: those of this step."""
    import torch

    from bdtune.training.session import generator

    if size < len(images):
        order = torch.randperm(len(images), generator=generator(seed, "batch", step))[:size]
        images = images.index_select(0, order.to(images.device))
    return (images.float() / 255).permute(0, 3, 1, 2)

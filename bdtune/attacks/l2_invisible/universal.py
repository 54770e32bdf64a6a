"""The stage that finds one small perturbation for all images."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdtune.knobs import Knobs
from bdtune.poisoning.crafting import (
    Crafting,
    as_image,
    drawn_batch,
    frozen_network,
    normalised,
    some_ids,
)

if TYPE_CHECKING:
    from typing import Any

    import torch

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.poisoning.crafting import Arrays
    from bdtune.training.loop import Training

START_STD = 10 / 255
"""Of the Gaussian noise that the descent starts from."""


def radius_for(radius: float, height: int, width: int) -> float:
    """Return the radius of an L2 ball that, given for 32x32 pixels, has the same energy per pixel here."""
    return radius * sqrt(height * width) / 32


class Universal(Knobs):
    """Knobs of the perturbation d."""

    radius: float = Field(3.2, gt=0)
    """Largest L2 norm of d for 32x32 pixels in [0, 1]; grows with the side of the image."""
    units: int = Field(5, ge=1)
    """Units of the last layer that d drives: those with the largest weight into the target's logit."""
    scale: float = Field(10.0, gt=0)
    """How many times its clean activation each unit shall reach."""
    norm_weight: float = Field(0.1, ge=0)
    """Weight of |d| in the loss."""
    iterations: int = Field(200, ge=1)
    """Gradient steps on d."""
    batch_size: int = Field(256, ge=1)
    """Images per step."""
    lr: float = Field(0.01, gt=0)
    """Adam's rate on d."""


class UniversalPerturbation(Universal, Crafting):
    """Fit d, of small L2 norm, that makes the target class's units answer `scale` times as loud.

    Inputs: data (ImageSet), model (Model), surrogate (artefact with weights).
    Result: perturbation float32 [H, W, C], signed, pixels in [0, 1]. Info: its norms, the mean ratio of
    activations reached, and the share of images that the surrogate takes for the target.
    Loss: mean over images and units of (h(x + d) - scale h(x))^2, plus norm_weight |d|; after each step d is
    put back into the ball.
    """

    name: ClassVar[str] = "universal_perturbation"

    target: int = Field(0, ge=0)
    """Class whose units are driven."""

    def training(self, ctx: Context, *, data: ImageSet, model: Model, surrogate: Artefact) -> Training:
        import torch

        from bdtune.training import session, weights

        device = session.device_of(ctx.numerics)
        height, width, channels = data.image_shape
        limit = radius_for(self.radius, height, width)
        network = frozen_network(model, data, surrogate, ctx.numerics)
        weight = network.head.weight[self.target]
        units = weight.topk(min(self.units, len(weight))).indices
        images = weights.as_tensor(data.images_at(some_ids(len(data), ctx.seed))).to(device)

        def loss(value: torch.Tensor, step: int) -> torch.Tensor:
            clean = drawn_batch(images, self.batch_size, ctx.seed, step)
            before = network.features(normalised(clean, data))[:, units]
            after = network.features(normalised((clean + value).clamp(0, 1), data))[:, units]
            return (after - self.scale * before).square().mean() + self.norm_weight * value.norm()

        def project(value: torch.Tensor) -> None:
            value.mul_((limit / value.norm().clamp_min(1e-12)).clamp_max(1.0))

        def result(value: torch.Tensor) -> tuple[Arrays, dict[str, Any]]:
            with torch.no_grad():
                clean = drawn_batch(images, self.batch_size, ctx.seed, self.iterations)
                before = network.features(normalised(clean, data))
                after = network.features(normalised((clean + value).clamp(0, 1), data))
                taken = (network.head(after).argmax(1) == self.target).float().mean()
            info = {
                "l2": value.norm().item(),
                "linf": value.abs().max().item(),
                "ratio": (after[:, units].mean() / before[:, units].mean().clamp_min(1e-6)).item(),
                "taken_for_target": taken.item(),
            }
            return {"perturbation": as_image(value)}, info

        noise = torch.randn(channels, height, width, generator=session.generator(ctx.seed, "start"))
        start = (noise * START_STD).to(device)
        project(start)
        return self.descent(start, loss, result, project=project)

"""The Trojan trigger: where its pixels are, and the stage that finds their colours."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field

from bdtune.knobs import Knobs
from bdtune.poisoning.crafting import Crafting, as_image, as_planes, frozen_network, normalised
from bdtune.poisoning.patterns import OVERSAMPLING, scaled

if TYPE_CHECKING:
    from typing import Any

    import torch

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.poisoning.crafting import Arrays
    from bdtune.training.loop import Training

SHOWN = 256
"""Clean images whose activations are logged beside those of the trigger."""

Strokes = tuple[tuple[tuple[float, float], ...], ...]

LETTERS: dict[str, Strokes] = {
    # lines through points (x, y) of a unit box, y down
    "T": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "R": (((0, 1), (0, 0), (0.8, 0), (1, 0.25), (0.8, 0.5), (0, 0.5)), ((0.4, 0.5), (1, 1))),
    "O": (((0, 0), (1, 0), (1, 1), (0, 1), (0, 0)),),
    "J": (((1, 0), (1, 0.8), (0.7, 1), (0.3, 1), (0, 0.75)),),
    "A": (((0, 1), (0.5, 0), (1, 1)), ((0.2, 0.6), (0.8, 0.6))),
    "N": (((0, 1), (0, 0), (1, 1), (1, 0)),),
    "W": (((0, 0), (0.25, 1), (0.5, 0.4), (0.75, 1), (1, 0)),),
    "M": (((0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)),),
}
TEXT = ("TROJ", "ANWM")


class Shape(Knobs):
    """Which pixels belong to the trigger; lengths are for images of 32 pixels and scale."""

    kind: Literal["square", "watermark"] = "square"
    """square: a box near the bottom right corner; watermark: thin letters over the whole image."""
    size: int = Field(8, ge=1)
    """Side of the square."""
    inset: int = Field(3, ge=0)
    """Margin of the square to the two borders."""

    def box(self, height: int, width: int) -> tuple[int, int]:
        """Return side and margin of the square in pixels of this image."""
        side = min(height, width)
        return max(1, scaled(self.size, 32, side)), scaled(self.inset, 32, side)

    def mask(self, height: int, width: int) -> np.ndarray:
        """Return float32 [height, width, 1]: 1 where the trigger is."""
        if self.kind == "watermark":
            return watermark(height, width)
        side, margin = self.box(height, width)
        mask = np.zeros((height, width, 1), np.float32)
        mask[height - margin - side : height - margin, width - margin - side : width - margin] = 1
        return mask


@lru_cache(maxsize=32)
def watermark(height: int, width: int) -> np.ndarray:
    """Return the mask of two lines of letters with strokes of a pixel at 32: about a fifth of all pixels."""
    canvas = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING), 0)
    draw = ImageDraw.Draw(canvas)
    thick = max(OVERSAMPLING, round(min(canvas.size) * 1.2 / 32))
    for row, letters in enumerate(TEXT):
        for column, letter in enumerate(letters):
            left, top = 0.05 + 0.24 * column, 0.08 + 0.46 * row
            for stroke in LETTERS[letter]:
                points = [
                    ((left + 0.16 * x) * canvas.width, (top + 0.36 * y) * canvas.height) for x, y in stroke
                ]
                draw.line(points, fill=255, width=thick, joint="curve")
    mask = np.asarray(canvas.reduce(OVERSAMPLING), np.float32)[..., None] >= 127.5
    mask = mask.astype(np.float32)
    mask.flags.writeable = False
    return mask


class Drive(Knobs):
    """Knobs of the descent on the trigger."""

    units: int = Field(2, ge=1)
    """Units of the last layer that the trigger drives: those with the largest outgoing weights."""
    value: float = 100.0
    """Activation aimed at; ReLU networks may never reach it: what was reached is in the artefact's info."""
    iterations: int = Field(1000, ge=1)
    """Gradient steps on the trigger."""
    lr: float = Field(0.1, gt=0)
    """Adam's rate on the trigger, falling as a cosine."""


class TrojanTrigger(Drive, Crafting, defaults={"schedule": "cosine"}):
    """Fit colours inside a mask, on black ground, that drive the units which the classifier weighs most.

    Inputs: data (ImageSet), model (Model), surrogate (artefact with weights).
    Result: colours float32 [H, W, C] in [0, 1], 0 outside the mask. Info: the units, what they reached, their
    mean on clean images and the value aimed at. Loss: the sum over units of (h - value)^2, h being the input
    of the last linear layer.
    """

    name: ClassVar[str] = "trojan_trigger"

    shape: Shape = Shape()
    """Where the trigger is."""

    def training(self, ctx: Context, *, data: ImageSet, model: Model, surrogate: Artefact) -> Training:
        import torch

        from bdtune.training import session
        from bdtune.training.batches import in_order

        device = session.device_of(ctx.numerics)
        height, width, channels = data.image_shape
        network = frozen_network(model, data, surrogate, ctx.numerics)
        units = network.head.weight.abs().sum(0).topk(min(self.units, network.feature_dim)).indices
        mask = torch.tensor(self.shape.mask(height, width), device=device)[..., 0]

        def activations(planes: torch.Tensor) -> torch.Tensor:
            return network.features(normalised(planes, data))[:, units]

        def picture(value: torch.Tensor) -> torch.Tensor:
            return mask * (0.5 + 0.5 * value.tanh())

        def loss(value: torch.Tensor, _step: int) -> torch.Tensor:
            return (activations(picture(value)[None]) - self.value).square().sum()

        def result(value: torch.Tensor) -> tuple[Arrays, dict[str, Any]]:
            colours = picture(value)
            with torch.no_grad():
                reached, usual = activations(colours[None])[0].tolist(), clean.mean(0).tolist()
            info = {"units": units.tolist(), "aim": self.value, "reached": reached, "clean": usual}
            return {"colours": as_image(colours)}, info

        with torch.no_grad():
            clean = activations(as_planes(next(in_order(data, SHOWN))[1], device))
        uniform = torch.rand(channels, height, width, generator=session.generator(ctx.seed, "start"))
        start = torch.atanh((2 * uniform - 1) * 0.9).to(device)
        return self.descent(start, loss, result)

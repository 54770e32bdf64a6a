"""Stages of the patch that makes images of all classes look like the target class to a classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import UserError
from bdtune.plugins.poison_plan import drawn_order
from bdtune.poisoning.corner_square import CornerSquare
from bdtune.poisoning.latent_trigger import LatentTrigger

if TYPE_CHECKING:
    import torch

    from bdtune.plugins.data import LabelSet
    from bdtune.poisoning.latent_trigger import Stamp


class Place(CornerSquare, defaults={"size": 6}):
    """Where the patch lies: 6 of 32 pixels are 4 % of the image."""


class RowsPerClass(Stage):
    """Draw rows of each class to fit a trigger to.

    Inputs: data (LabelSet, true labels). Result: ids int64 [n] of rows of other classes than the target,
    target_ids int64 [m] of the target class; both ascending.
    """

    name: ClassVar[str] = "rows_per_class"
    kind: ClassVar[Kind] = "derive"

    target: int = Field(0, ge=0)
    """The target class."""
    per_class: int = Field(100, ge=1)
    """Rows of each class; all where there are fewer."""

    def run(self, ctx: Context, *, data: LabelSet) -> Artefact:
        labels = np.asarray(data.labels)
        order = drawn_order(np.arange(len(labels)), len(labels), ctx.seed)
        drawn = {label: order[labels[order] == label][: self.per_class] for label in np.unique(labels)}
        target = drawn.pop(self.target, np.empty(0, np.int64))
        if not len(target) or not drawn:
            raise UserError(f"a latent trigger needs images of class {self.target} and of another class")
        return Artefact({"ids": np.sort(np.concatenate([*drawn.values()])), "target_ids": np.sort(target)})


class LatentPatch(
    LatentTrigger, defaults={"ratio": 1.0, "batch_size": 128, "iterations": 800, "settled": 0.0}
):
    """Fit the colours of a patch so that images with it have the mean embedding of the target class.

    Inputs and info are those of `LatentTrigger`. Result: picture float32 [H, W, C] in [0, 1], 0 outside the
    patch. Colours are (1 + tanh w) / 2, w from a normal distribution.
    """

    name: ClassVar[str] = "latent_patch"

    place: Place = Place()
    """Where the patch lies."""

    def picture(self, value: torch.Tensor) -> torch.Tensor:
        import torch

        mask = torch.tensor(self.place.mask(*value.shape[1:]), device=value.device)
        return (0.5 + 0.5 * value.tanh()) * mask[..., 0]

    def stamp(self, sides: tuple[int, int], device: torch.device) -> Stamp:
        import torch

        weight = self.ratio * torch.tensor(self.place.mask(*sides), device=device)[..., 0]
        return lambda clean, value: torch.lerp(clean, (0.5 + 0.5 * value.tanh())[None], weight)

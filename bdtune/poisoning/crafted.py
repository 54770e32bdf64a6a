"""The stage that makes images of one class look like others to a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import UserError
from bdtune.plugins.attack import quantised
from bdtune.training.adversarial import PGD

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model


class OwnLabelPGD(PGD, defaults={"eps": 16 / 255, "step": 1.5 / 255, "steps": 30, "random_start": False}):
    """Projected gradient ascent on the loss of an image's own label, from the image itself."""


class CraftedImages(Stage):
    """Attack a network on all training images of one class, untargeted, and keep the images as bytes.

    Inputs: data (ImageSet, true labels), model (Model), surrogate (artefact with weights).
    Result: ids int64 [n] of the class, ascending, images uint8 [n, H, W, C]. Info: the network's accuracy on
    them before and after. In float32, network in evaluation mode.
    """

    name: ClassVar[str] = "crafted_images"
    kind: ClassVar[Kind] = "train"

    target: int = Field(0, ge=0)
    """The class."""
    pgd: OwnLabelPGD = OwnLabelPGD()
    """The attack."""
    quantise: Literal["round", "trunc"] = "round"
    """How the last step's pixels become uint8."""

    def run(self, ctx: Context, *, data: ImageSet, model: Model, surrogate: Artefact) -> Artefact:
        import torch

        from bdtune.poisoning.crafting import as_planes, frozen_network
        from bdtune.training import batches, pgd, session, weights

        device = session.device_of(ctx.numerics)
        ids = np.flatnonzero(np.asarray(data.labels) == self.target)
        if not len(ids):
            raise UserError(f"{self.name}: there is no image of class {self.target}")
        network = frozen_network(model, data, surrogate, ctx.numerics)
        attack = pgd.Ascent(network, self.pgd, data, ctx.numerics.exact())
        clean = data.images_at(ids)
        crafted, hits = np.empty_like(clean), np.zeros(2)
        size = batches.images_of(pgd.BATCH_PIXELS, data)
        draws = session.generator(ctx.seed, "start")
        for start in range(0, len(ids), size):
            part = slice(start, start + size)
            pixels = as_planes(clean[part], device)
            labels = torch.full((len(pixels),), self.target, device=device)
            with session.deterministic(ctx.numerics):
                found = attack(pixels, labels, draws)
            crafted[part] = quantised(weights.as_array(found.permute(0, 2, 3, 1)), self.quantise)
            after = as_planes(crafted[part], device)
            for i, seen in enumerate((pixels, after)):
                hits[i] += (pgd.pixel_logits(network, data, seen).argmax(1) == labels).sum().item()
        before, after_all = (hits / len(ids)).tolist()
        info: dict[str, Any] = {"acc": before, "acc_crafted": after_all}
        return Artefact({"ids": ids.astype(np.int64), "images": crafted}, info)

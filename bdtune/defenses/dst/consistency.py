"""D-ST's metric: how far an image's features move when the image is transformed (FCT).

Source: "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (Chen et al., NeurIPS
2022), section 3.2, with the code's mean over features, where the paper has their sum: both rank alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import Diverged

if TYPE_CHECKING:
    import torch

    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model

Transform = Literal["rotate", "affine", "flip", "crop", "blur", "erase"]


class Consistency(Stage):
    """Compare the features of each image with those of its transformed self.

    Inputs: data (ImageSet), model (Model), features (artefact with weights). Arrays: fct float64 [N], the
    mean square of the difference of features, also over draws: large for what is sensitive. Evaluation mode
    and float32 whatever the numerics, so that small values do not tie. Raises `Diverged` when a value is not
    finite.
    Departures: transforms are drawn for each sample from its id, so that FCT does not depend on batches.
    """

    name: ClassVar[str] = "dst_fct"
    kind: ClassVar[Kind] = "train"

    transforms: tuple[Transform, ...] = Field(("rotate", "affine"), min_length=1)
    """Applied in turn: rotate: by up to 180 degrees; affine: shifted by up to a fifth of the side; flip:
    mirrored; crop: padded by an eighth of the side; blur: Gaussian, 3 pixels; erase: a random rectangle."""
    draws: int = Field(1, ge=1)
    """Transformed versions of each image, over which the mean is taken."""

    def run(self, ctx: Context, *, data: ImageSet, model: Model, features: Artefact) -> Artefact:
        import torch

        from bdtune.training.augment import Augmentation
        from bdtune.training.batches import images_of, in_order
        from bdtune.training.changed import changed_by_id
        from bdtune.training.predict import PIXELS, trained_network
        from bdtune.training.session import deterministic, device_of
        from bdtune.training.weights import as_array, as_tensor

        network = trained_network(model, data, features, ctx.numerics)
        device, see, change = device_of(ctx.numerics), Augmentation.of("none", data), self._change(data)
        fct = np.zeros(len(data))
        with torch.inference_mode(), deterministic(ctx.numerics):
            for ids, images in in_order(data, images_of(PIXELS, data)):
                still = network.features(see(as_tensor(images).to(device)))
                for draw in range(self.draws):
                    changed = changed_by_id(images, ids, change, ctx.seed, "transform", draw)
                    moved = network.features(see(changed.to(device)))
                    fct[ids] += as_array((still - moved).square().double().mean(1)) / self.draws
        if not np.isfinite(fct).all():
            raise Diverged(f"{self.name}: features are not finite")
        return Artefact({"fct": fct})

    def _change(self, data: ImageSet) -> torch.nn.Module:
        from torchvision.transforms import v2

        height, width, _ = data.image_shape
        known: dict[str, Any] = {
            "rotate": v2.RandomRotation(180),
            "affine": v2.RandomAffine(0, translate=(0.2, 0.2)),
            "flip": v2.RandomHorizontalFlip(1.0),
            "crop": v2.RandomCrop((height, width), padding=max(1, round(height / 8))),
            "blur": v2.GaussianBlur(3),
            "erase": v2.RandomErasing(1.0),
        }
        return v2.Compose([known[name] for name in self.transforms])

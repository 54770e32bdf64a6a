"""SimCLR: an encoder trained without labels to tell its own images' views from all others.

Source: SimCLR (Chen et al., 2020), NT-Xent loss of section 2.1, with the settings of GSSD's appendix E:
100 epochs, batch 256, temperature 0.5, Adam at 3e-4, no Gaussian blur.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bdtune.errors import UserError
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from typing import Any

    import torch

    from bdtune.engine.stage import Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training

Beta = Annotated[float, Field(ge=0, lt=1)]


class SimCLR(TorchStage):
    """Train the features of a network on two random views of each image; labels are not read.

    Inputs: data (ImageSet), model (Model).
    Result: weights `model.<name>` without the network's linear head; the projection head is dropped too.
    Incomplete batches are left out, as in the reference; a set smaller than `batch_size` makes one batch of
    its own size, which is logged and stands in `info`.
    Departures: both views pass the network as one batch; images are normalised by their own data set's
    constants; order of the jitter steps is drawn per batch. Raises `Diverged` on a non-finite loss or weight.
    """

    name: ClassVar[str] = "simclr"

    epochs: int = Field(100, ge=1)
    """Passes over the images."""
    batch_size: int = Field(256, ge=2)
    """Images per step; each gives two views, and the views of the others are its negatives."""
    lr: float = Field(3e-4, gt=0)
    """Adam's rate, constant."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Adam's betas; GSSD's appendix prints (0.9, 0.99), its code uses these."""
    weight_decay: float = Field(0.0, ge=0)
    """Adam's weight decay."""
    temperature: float = Field(0.5, gt=0)
    """Divides cosine similarities."""
    projection: int = Field(128, ge=1)
    """Width of the projections that the loss compares."""
    flip: bool | None = None
    """Whether views are mirrored; null: unless a mirror image may be of another class."""

    def training(self, ctx: Context, *, data: ImageSet, model: Model) -> Training:
        from bdtune.training import augment, batches, loop, nt_xent, session, weights

        batch_size = self._batch_size(len(data), ctx)
        device = session.device_of(ctx.numerics)
        network = weights.new_network(model, data, ctx.seed, ctx.numerics)
        with session.seeded(ctx.seed, "projection"):
            head = nt_xent.projection_head(network.feature_dim, self.projection).to(device)
        trained = [weight for name, weight in network.named_parameters() if not name.startswith("head.")]
        optimizer = loop.make_optimizer(
            [*trained, *head.parameters()], "adam", self.lr, weight_decay=self.weight_decay, betas=self.betas
        )
        images = batches.DeviceSet(data, device)
        flip = data.mirrors if self.flip is None else self.flip
        views = augment.Augmentation.of("simclr", data, session.dtype_of(ctx.numerics), flip=flip)

        def epoch(done: int) -> dict[str, float]:
            network.train()
            meter = loop.Meter(f"{self.name}: epoch {done + 1} of {self.epochs}", device)
            draws = session.generator(ctx.seed, "augment", done)
            for batch in images.shuffled(batch_size, ctx.seed, done, drop_last=True):
                both: torch.Tensor = views(batch.images.repeat(2, 1, 1, 1), draws)
                with session.autocast(ctx.numerics):
                    features = network.features(both)
                loss = nt_xent.nt_xent(head(features.float()), self.temperature)
                loop.descend(optimizer, loss)
                meter.add(loss, len(batch.rows))
            return {"loss": meter.means()[0]}

        def result(done: int) -> tuple[dict[str, Any], dict[str, Any]]:
            arrays = weights.module_arrays(network, skip=weights.HEAD)
            return arrays, {"epochs": done, "samples": len(data), "batch_size": batch_size}

        modules = {"model": network, "projection": head}
        return loop.Training(self.name, self.epochs, modules, {"model": optimizer}, epoch, result)

    def passes_per_epoch(self) -> float:
        return 2.0  # two views

    def _batch_size(self, samples: int, ctx: Context) -> int:
        if samples < 2:
            raise UserError(
                f"{self.name} compares images with one another and needs at least 2, got {samples}"
            )
        if samples < self.batch_size:
            ctx.log.warning(
                "%s: batch_size %d is more than the %d images; using these",
                self.name,
                self.batch_size,
                samples,
            )
        return min(self.batch_size, samples)

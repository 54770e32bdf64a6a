"""SimCLR: an encoder trained without labels to tell its own images' views from all others.

Source: SimCLR (Chen et al., 2020), NT-Xent loss of section 2.1, with the settings of GSSD's appendix E:
100 epochs, batch 256, temperature 0.5, Adam at 3e-4, no Gaussian blur. Settings that only others than GSSD
change are in a key where they are changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from bdtune.effects import OnlyIf
from bdtune.errors import UserError
from bdtune.knobs import Rate
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from typing import Any, Self

    import torch

    from bdtune.engine.stage import Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.loop import Training

Beta = Annotated[float, Field(ge=0, lt=1)]
HeadKind = Literal["plain", "normed"]


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
    """Learning rate at the start."""
    optimizer: Annotated[Literal["adam", "sgd"], OnlyIf(optimizer="sgd")] = "adam"
    """sgd: with momentum."""
    betas: Annotated[tuple[Beta, Beta], OnlyIf(optimizer="adam")] = (0.9, 0.999)
    """Adam's betas; GSSD's appendix prints (0.9, 0.99), its code uses these."""
    momentum: Annotated[float, OnlyIf(optimizer="sgd")] = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(0.0, ge=0)
    """On all weights."""
    schedule: Annotated[Literal["constant", "cosine"], OnlyIf(schedule="cosine")] = "constant"
    """cosine: the rate falls to zero over `horizon`."""
    horizon: Annotated[int | None, OnlyIf(schedule="cosine")] = Field(None, ge=1)
    """Epochs after which cosine reaches zero, which may be more than are trained; null: `epochs`."""
    temperature: float = Field(0.5, gt=0)
    """Divides cosine similarities."""
    projection: int = Field(128, ge=1)
    """Width of the projections that the loss compares."""
    head: Annotated[HeadKind, OnlyIf(head="normed")] = "plain"
    """What makes them: two linear layers around a ReLU without biases, or with biases and batch norm."""
    flip: bool | None = None
    """Whether views are mirrored; null: unless a mirror image may be of another class."""
    smallest_crop: Annotated[float, OnlyIf(own_views=True)] = Field(0.08, gt=0, le=1)
    """Least share of an image's area that a view shows."""
    jitter: Annotated[float, OnlyIf(own_views=True)] = Field(1.0, ge=0, le=1.25)
    """Strength of the change of colours; 1: brightness, contrast and saturation by 0.8, hue by 0.2."""
    blur: Annotated[Rate, OnlyIf(own_views=True)] = 0.0
    """Fraction of views that are blurred."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.schedule == "cosine" and self.horizon is not None and self.horizon < self.epochs:
            raise ValueError(f"horizon must be at least epochs, got {self.horizon} and {self.epochs}")
        return self

    @property
    def own_views(self) -> bool:
        """Whether views are not those of GSSD's appendix."""
        return (self.smallest_crop, self.jitter, self.blur) != (0.08, 1.0, 0.0)

    def at(self, epochs: int) -> SimCLR | None:
        """Return the same training with another length, where its rate depends on none."""
        fixed = self.schedule == "constant" or self.horizon is not None
        return self.model_copy(update={"epochs": epochs}) if fixed else None

    def images_per_step(self, samples: int) -> int:
        return 2 * min(self.batch_size, samples)

    def moments(self) -> int:
        return int(self.momentum > 0) if self.optimizer == "sgd" else 2

    def rate(self, done: int) -> float:
        """Return the learning rate of the epoch after `done`."""
        from bdtune.training.loop import learning_rate

        return learning_rate(self.schedule, self.lr, done, self.horizon or self.epochs)

    def training(self, ctx: Context, *, data: ImageSet, model: Model) -> Training:
        from bdtune.training import augment, batches, loop, nt_xent, session, weights

        batch_size = self._batch_size(len(data), ctx)
        device = session.device_of(ctx.numerics)
        network = weights.new_network(model, data, ctx.seed, ctx.numerics)
        with session.seeded(ctx.seed, "projection"):
            head = nt_xent.projection_head(network.feature_dim, self.projection, self.head).to(device)
        trained = [weight for name, weight in network.named_parameters() if not name.startswith("head.")]
        rule: dict[str, Any] = {"weight_decay": self.weight_decay, "momentum": self.momentum}
        optimizer = loop.make_optimizer(
            [*trained, *head.parameters()], self.optimizer, self.lr, betas=self.betas, **rule
        )
        images = batches.DeviceSet(data, device)
        flip = data.mirrors if self.flip is None else self.flip
        looks = {"smallest_crop": self.smallest_crop, "jitter": self.jitter, "blur": self.blur}
        dtype = session.dtype_of(ctx.numerics)
        views = augment.Augmentation.of("simclr", data, dtype, flip=flip, **looks)

        def epoch(done: int) -> dict[str, float]:
            loop.set_learning_rate(optimizer, self.rate(done))
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

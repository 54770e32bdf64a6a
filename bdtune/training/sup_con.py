"""SupCon: an encoder trained to bring images of one label together, of all samples or of trusted ones alone.

Source: "Supervised Contrastive Learning" (Khosla et al., 2020), with the settings of D-ST's code (Chen et
al., NeurIPS 2022): 200 epochs, batch 512, SGD at 0.5 with cosine decay after a warm-up of 10 epochs,
temperature 0.1, projections of width 128. Its semi-supervised form, for trusted samples alone, is D-ST's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from bdtune.errors import UserError
from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    import torch

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.batches import Batch
    from bdtune.training.loop import Training

Positives = Literal["trusted", "any_label", "all", "none"]


class SupCon(TorchStage):
    """Train the features of a network on two random views of each image, of all images.

    Inputs: data (ImageSet), model (Model), and trusted (artefact with ids int64 [n]) where `positives` asks.
    Result: weights `model.<name>` without the network's linear head; the projection head is dropped too.
    Departures: the order of the jitter's steps is drawn per batch; the projection head has no biases; the
    rate warms up epoch by epoch from 0 and falls to 0, where the code does so step by step from 0.01 and ends
    at a thousandth.
    Raises `Diverged` on a non-finite loss or weight, `UserError` with fewer than 2 images.
    """

    name: ClassVar[str] = "sup_con"

    epochs: int = Field(200, ge=1)
    """Passes over the images."""
    batch_size: int = Field(512, ge=2)
    """Images per step; each gives two views. The last batch may be smaller."""
    lr: float = Field(0.5, gt=0)
    """SGD's rate after the warm-up, from which it falls along a cosine."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(1e-4, ge=0)
    """SGD's weight decay."""
    warmup: int = Field(10, ge=0)
    """Epochs over which the rate rises in equal steps; 0: none, as the code has for batches up to 256."""
    temperature: float = Field(0.1, gt=0)
    """Divides cosine similarities."""
    base_temperature: float = Field(0.07, gt=0)
    """Divides the temperature, by which the loss is multiplied."""
    projection: int = Field(128, ge=1)
    """Width of the projections that the loss compares."""
    positives: Positives = "all"
    """Besides its own second view, of an image: none (contrastive learning); all of its label (supervised);
    trusted: if both are trusted, of its label; any_label: of its label, trusted or not, if it is itself."""
    flip: bool | None = None
    """Whether views are mirrored; null: unless a mirror image may be of another class."""
    smallest_crop: float = Field(0.2, gt=0, le=1)
    """Least share of an image's area that a view shows."""
    jitter: float = Field(0.5, ge=0, le=1.25)
    """Strength of the change of colours; 1: brightness, contrast and saturation by 0.8, hue by 0.2."""

    def images_per_step(self, samples: int) -> int:
        return 2 * min(self.batch_size, samples)

    def moments(self) -> int:
        return int(self.momentum > 0)

    @property
    def needs_trusted(self) -> bool:
        """Whether the input `trusted` is read."""
        return self.positives in {"trusted", "any_label"}

    def passes_per_epoch(self) -> float:
        return 2.0  # two views

    def rate(self, done: int) -> float:
        """Return the learning rate of the epoch after `done`."""
        from bdtune.training.loop import learning_rate

        rising = min(1.0, (done + 1) / self.warmup) if self.warmup else 1.0
        return rising * learning_rate("cosine", self.lr, done, self.epochs)

    def training(
        self, ctx: Context, *, data: ImageSet, model: Model, trusted: Artefact | None = None
    ) -> Training:
        from bdtune.training import augment, batches, loop, session, weights
        from bdtune.training.nt_xent import projection_head
        from bdtune.training.sup_con_loss import sup_con

        if len(data) < 2:
            raise UserError(
                f"{self.name} compares images with one another and needs at least 2, got {len(data)}"
            )
        device = session.device_of(ctx.numerics)
        network = weights.new_network(model, data, ctx.seed, ctx.numerics)
        with session.seeded(ctx.seed, "projection"):
            head = projection_head(network.feature_dim, self.projection).to(device)
        trained = [weight for name, weight in network.named_parameters() if not name.startswith("head.")]
        optimizer = loop.make_optimizer(
            [*trained, *head.parameters()],
            "sgd",
            self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        images, known = batches.DeviceSet(data, device), self._known(len(data), trusted).to(device)
        flip = data.mirrors if self.flip is None else self.flip
        looks = {"smallest_crop": self.smallest_crop, "jitter": self.jitter}
        views = augment.Augmentation.of("simclr", data, session.dtype_of(ctx.numerics), flip=flip, **looks)

        def epoch(done: int) -> dict[str, float]:
            lr = self.rate(done)
            loop.set_learning_rate(optimizer, lr)
            network.train()
            meter = loop.Meter(f"{self.name}: epoch {done + 1} of {self.epochs}, lr {lr:g}", device)
            draws = session.generator(ctx.seed, "augment", done)
            for batch in images.shuffled(self.batch_size, ctx.seed, done):
                both = views(batch.images.repeat(2, 1, 1, 1), draws)
                with session.autocast(ctx.numerics):
                    features = network.features(both)
                partners = self.partners(batch, known[batch.rows])
                projections = head(features.float())
                loss = sup_con(projections, partners, self.temperature, self.base_temperature)
                loop.descend(optimizer, loss)
                meter.add(loss, len(batch.rows))
            return {"loss": meter.means()[0], "lr": lr}

        def result(done: int) -> tuple[dict[str, Any], dict[str, Any]]:
            arrays = weights.module_arrays(network, skip=weights.HEAD)
            return arrays, {"epochs": done, "samples": len(data)}

        modules = {"model": network, "projection": head}
        return loop.Training(self.name, self.epochs, modules, {"model": optimizer}, epoch, result)

    def _known(self, samples: int, trusted: Artefact | None) -> torch.Tensor:
        """Return bool [N], true for trusted samples; raises `UserError` if they are needed and not given."""
        import torch

        from bdtune.training.weights import as_tensor

        known = torch.zeros(samples, dtype=torch.bool)
        if self.needs_trusted:
            if trusted is None:
                raise UserError(f"{self.name}: positives: {self.positives} needs the input `trusted`")
            known[as_tensor(trusted.arrays["ids"])] = True
        return known

    def partners(self, batch: Batch, known: torch.Tensor) -> torch.Tensor:
        """Return bool [B, B]: row i has the images whose views are positives of image i; known bool [B]."""
        same = batch.labels[:, None] == batch.labels
        match self.positives:
            case "all":
                return same
            case "none":
                return same & False
            case "any_label":
                return same & known[:, None]
            case "trusted":
                return same & known[:, None] & known

"""Supervised: a classifier trained by cross-entropy on a labelled subset.

Source: the recipe of He et al. (2016), section 4.2, which the field's CIFAR-10 experiments share: SGD with
momentum 0.9 and weight decay 5e-4, rate 0.1 divided by 10 at half and three quarters, 200 epochs, batch 128.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.engine.stage import Artefact, Context, Inputs, Stage, Tick
from bdtune.errors import Diverged
from bdtune.knobs import Rate
from bdtune.training.choices import Augment, OptimizerName, Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any

    import numpy as np
    import torch

    from bdtune.plugins.network import Network
    from bdtune.training.batches import Batch

    Preparation = Callable[[Batch, torch.Generator], torch.Tensor]


class Supervised(Stage):
    """Train a classifier on `subset` (arrays ids, labels) of `data`, from scratch or from `init`'s weights.

    Inputs: data (ImageSet), subset (artefact), model (Model), optionally init (artefact with weights).
    Result: weights `model.<name>`; the curve has loss, acc and lr by epoch. An empty subset returns `init`
    unchanged, or raises `Diverged` without one. Raises `Diverged` on a non-finite loss or weight.
    Departures: a last batch of one image joins the one before it, since batch norm needs two.
    """

    name: ClassVar[str] = "supervised"
    kind: ClassVar = "train"
    classifier: ClassVar[bool] = True

    epochs: int = Field(200, ge=1)
    """Passes over the subset."""
    batch_size: int = Field(128, ge=2)
    """Images per step; the last batch may be smaller."""
    optimizer: OptimizerName = "sgd"
    """sgd: with momentum."""
    lr: float = Field(0.1, gt=0)
    """Learning rate at the start."""
    momentum: Annotated[float, OnlyIf(optimizer="sgd")] = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    nesterov: Annotated[bool, OnlyIf(optimizer="sgd")] = False
    """Whether sgd looks ahead along its momentum, as Nesterov's does."""
    weight_decay: float = Field(5e-4, ge=0)
    """On all weights; decoupled with adamw."""
    schedule: Schedule = "multistep"
    """multistep: times `gamma` at each milestone; cosine: to zero; constant."""
    milestones: Annotated[tuple[Rate, ...], OnlyIf(schedule="multistep")] = (0.5, 0.75)
    """Fractions of `epochs` at which multistep lowers the rate."""
    gamma: Annotated[float, OnlyIf(schedule="multistep")] = Field(0.1, gt=0, le=1)
    """Factor of each multistep."""
    augment: Augment = "auto"
    """auto: crop_flip, or crop where a mirror image may be of another class; crop: padded by an eighth."""

    @property
    def looks_ahead(self) -> bool:
        """Whether the momentum is Nesterov's: with sgd, if it has any."""
        return self.nesterov and self.optimizer == "sgd" and self.momentum > 0

    def length(self) -> int:
        return self.epochs

    def at(self, epochs: int) -> Supervised | None:
        """Return the same training with another length, where its rate depends on none.

        A classifier that a scheduler judges has none: it may be stopped before it passes anything.
        """
        fixed = self.schedule == "constant" and not self.classifier
        return self.model_copy(update={"epochs": epochs}) if fixed and epochs >= 1 else None

    def batch_loss(self, logits: torch.Tensor, batch: Batch, inputs: Inputs) -> torch.Tensor:
        """Return the mean loss of one batch; defenses that weigh samples override this."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, batch.labels)

    def preparation(self, network: Network, inputs: Inputs, ctx: Context) -> Preparation:
        """Return what makes the network's input of a batch; defenses that change images override this."""
        from bdtune.training import augment, session

        augmentation = augment.Augmentation.of(self.augment, inputs["data"], session.dtype_of(ctx.numerics))
        return lambda batch, draws: augmentation(batch.images, draws)

    def new_optimizer(self, network: Network) -> torch.optim.Optimizer:
        """Return the optimizer of the network's weights."""
        from bdtune.training.loop import make_optimizer

        rule: dict[str, Any] = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return make_optimizer(
            network.parameters(), self.optimizer, self.lr, nesterov=self.looks_ahead, **rule
        )

    def companions(self, inputs: Inputs, device: torch.device) -> dict[str, torch.nn.Module]:
        """Return modules that are kept, saved and stored beside the network, each under its own name.

        The other hooks find them in `inputs`; what they keep in buffers survives an interruption.
        """
        return {}

    def kept(self, arrays: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
        """Return what of the modules' arrays is the result after `done` epochs; by default all."""
        return arrays

    def before_epoch(self, done: int, network: Network, inputs: Inputs) -> None:
        """Put the network into the mode in which it is trained, `done` epochs being over."""
        network.train()

    def after_epoch(self, row: dict[str, float], network: Network, inputs: Inputs) -> dict[str, float]:
        """Return the curve's row of the epoch just trained; a "stopped" in it ends the training there."""
        return row

    def steps(self, inputs: Inputs, ctx: Context) -> Generator[Tick, None, Artefact]:
        from bdtune.training import batches, loop, session, weights

        subset, init = inputs["subset"].arrays, inputs.get("init")
        samples = len(subset["ids"])
        if samples == 0:
            return self._untouched(init)
        device = session.device_of(ctx.numerics)
        network = weights.new_network(inputs["model"], inputs["data"], ctx.seed, ctx.numerics, init)
        optimizer = self.new_optimizer(network)
        companions = self.companions(inputs, device)
        inputs = {**inputs, **companions}
        images = batches.DeviceSet(inputs["data"], device, subset["ids"], subset["labels"])
        see = self.preparation(network, inputs, ctx)

        def epoch(done: int) -> dict[str, float]:
            lr = self._rate(done)
            loop.set_learning_rate(optimizer, lr)
            self.before_epoch(done, network, inputs)
            meter = loop.Meter(f"{self.name}: epoch {done + 1} of {self.epochs}, lr {lr:g}", device)
            draws = session.generator(ctx.seed, "augment", done)
            for batch in images.shuffled(self.batch_size, ctx.seed, done):
                seen = see(batch, draws)
                with session.autocast(ctx.numerics):
                    logits = network(seen)
                loss = self.batch_loss(logits.float(), batch, inputs)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                meter.add(loss, len(logits), (logits.detach().argmax(1) == batch.labels).sum())
            mean_loss, accuracy = meter.means()
            return self.after_epoch({"loss": mean_loss, "acc": accuracy, "lr": lr}, network, inputs)

        def result(done: int) -> tuple[dict[str, Any], dict[str, Any]]:
            return self.kept(weights.modules_arrays(modules), done), {"epochs": done, "samples": samples}

        modules = {"model": network, **companions}
        return (yield from loop.Training(self.name, self.epochs, modules, optimizer, epoch, result).run(ctx))

    def _rate(self, done: int) -> float:
        from bdtune.training.loop import learning_rate

        return learning_rate(
            self.schedule, self.lr, done, self.epochs, milestones=self.milestones, gamma=self.gamma
        )

    def _untouched(self, init: Artefact | None) -> Artefact:
        if init is None:
            raise Diverged(f"{self.name}: the subset is empty and there are no weights to start from")
        return Artefact(init.arrays, {"epochs": 0, "samples": 0, "skipped": True})

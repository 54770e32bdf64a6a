"""A classifier trained by gradient descent on a labelled subset, put together from parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from bdtune.engine.remarks import MICRO_BATCH
from bdtune.engine.stage import Artefact
from bdtune.errors import Diverged
from bdtune.training import loop, session, weights
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.micro_batches import MicroBatches, coupling, mean_over_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from bdtune.engine.stage import Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.training.batches import Batch
    from bdtune.training.supervised import Supervised

    Loss = Callable[[torch.Tensor, Batch], torch.Tensor]
    """Maps logits float32 [B, K] and their batch to the mean loss."""
    Preparation = Callable[[Batch, torch.Generator], torch.Tensor]
    """Makes the network's input [B, C, H, W] of a batch; all that it draws comes from the generator."""


class Part:
    """What a training does besides descending; a part overrides what it needs."""

    modules: Mapping[str, torch.nn.Module] = {}
    """Kept in checkpoints and stored beside the network, each under its own name."""

    def before_epoch(self, done: int) -> None:
        """Prepare an epoch, `done` being over; the network is in training mode."""

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        """Return what the curve's row of the epoch gets besides; "stopped" ends the training there."""
        return {}

    def kept(self, arrays: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
        """Return what of the modules' arrays is the result after `done` epochs."""
        return arrays


class Pass:
    """One epoch of a fit, under way: gives batches with the network's input, and counts what came of them."""

    def __init__(self, fit: Fit, done: int, parts: Sequence[Part]) -> None:
        self.fit, self._done, self._parts = fit, done, parts
        recipe = fit.recipe
        self._lr = recipe.rate(done)
        loop.set_learning_rate(fit.optimizer, self._lr)
        fit.network.train()
        for part in parts:
            part.before_epoch(done)
        where = f"{recipe.name}: epoch {done + 1} of {recipe.epochs}, lr {self._lr:g}"
        self._meter = loop.Meter(where, fit.device)

    def __iter__(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        fit = self.fit
        draws = session.generator(fit.ctx.seed, "augment", self._done)
        for batch in fit.images.shuffled(fit.recipe.batch_size, fit.ctx.seed, self._done):
            yield batch, fit.prepare(batch, draws)

    def add(self, loss: torch.Tensor, samples: int, hits: torch.Tensor) -> None:
        """Count a step of mean loss; raises `Diverged` now and then, when it is not finite."""
        self._meter.add(loss, samples, hits)

    def row(self) -> dict[str, float]:
        """Return the curve's row of the epoch; raises `Diverged` on a loss that is not finite."""
        loss, accuracy = self._meter.means()
        row = {"loss": loss, "acc": accuracy, "lr": self._lr}
        if self.fit.passes.most != self.fit.ctx.numerics.micro_batch:
            row[MICRO_BATCH] = float(self.fit.passes.most or 0)
        for part in self._parts:
            row |= part.after_epoch(row)
        return row


@dataclass
class FitTraining(loop.Training):
    """The training of a fit, from whose epochs others may be made."""

    fit: Fit = field(kw_only=True)
    parts: tuple[Part, ...] = field(kw_only=True)

    def begin(self) -> Pass:
        """Begin the next epoch."""
        return Pass(self.fit, self.done, self.parts)


class Fit:
    """A network with its optimizer and images, as a recipe of `Supervised` asks for.

    `loss` and `prepare` may be replaced before `training` is called: by default cross-entropy of the labels,
    and the recipe's augmentation. A loss that `mean_over_samples` marks lets a batch pass in parts, where the
    device has too little memory for it and no layer sees the whole batch.
    """

    loss: Loss
    prepare: Preparation

    def __init__(  # noqa: PLR0917  the inputs of every training
        self,
        recipe: Supervised,
        ctx: Context,
        data: ImageSet,
        subset: Artefact,
        model: Model,
        init: Artefact | None = None,
    ) -> None:
        self.recipe, self.ctx, self.data, self.subset, self.init = recipe, ctx, data, subset, init
        self.ids, labels = subset.arrays["ids"], subset.arrays["labels"]
        self.samples = len(self.ids)
        self.device = session.device_of(ctx.numerics)
        self.network = weights.new_network(model, data, ctx.seed, ctx.numerics, init)
        self.optimizer = recipe.new_optimizer(self.network)
        self.images = DeviceSet(data, self.device, self.ids, labels)
        augmentation = Augmentation.of(recipe.augment, data, session.dtype_of(ctx.numerics))
        self.prepare = lambda batch, draws: augmentation(batch.images, draws)
        self.loss = mean_over_samples(lambda logits, batch: cross_entropy(logits, batch.labels))
        self.passes = MicroBatches("images", ctx.numerics.micro_batch)
        self._coupling = ""

    def training(self, *parts: Part) -> loop.Training | Artefact:
        """Return the training with these parts; of an empty subset `init` as it is.

        Raises `Diverged` where there is neither a sample nor an `init`.
        """
        name, epochs = self.recipe.name, self.recipe.epochs
        if not self.samples:
            return self._untouched()
        modules: dict[str, torch.nn.Module] = {"model": self.network}
        for part in parts:
            modules |= part.modules

        def result(done: int) -> tuple[dict[str, Any], dict[str, Any]]:
            arrays = weights.modules_arrays(modules)
            for part in parts:
                arrays = part.kept(arrays, done)
            return arrays, {"epochs": done, "samples": self.samples}

        def epoch(done: int) -> dict[str, float]:
            return self._epoch(done, parts)

        optimizers = {"model": self.optimizer}
        return FitTraining(
            name,
            epochs,
            modules,
            optimizers,
            epoch,
            result,
            coupling=lambda: self._coupling,
            fit=self,
            parts=parts,
        )

    def _epoch(self, done: int, parts: tuple[Part, ...]) -> dict[str, float]:
        under_way = Pass(self, done, parts)
        for batch, seen in under_way:
            under_way.add(*self._step(batch, seen))
        return under_way.row()

    def _step(self, batch: Batch, seen: torch.Tensor) -> tuple[torch.Tensor, int, torch.Tensor]:
        """Descend on a batch, of which the network sees `seen`; returns mean loss, size, how many were right.

        What was drawn for it was drawn for the whole, so that parts of it see the same.
        """
        rows = len(batch.labels)
        self._coupling = coupling(self.network, self.loss)
        if self._coupling:
            loss, hits = self._passed(seen, batch)
            loop.descend(self.optimizer, loss)
        else:
            loss, hits = self.passes.attempt(rows, lambda parts: self._gradients(seen, batch, parts))
            self.optimizer.step()
        return loss, rows, hits

    def _gradients(
        self, seen: torch.Tensor, batch: Batch, parts: list[slice]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Leave the gradient of a batch's loss in the weights, summed over its parts."""
        if len(parts) == 1:
            loss, hits = self._passed(seen, batch)
            self.optimizer.zero_grad()
            loss.backward()
            return loss.detach(), hits
        self.optimizer.zero_grad()
        sums = torch.zeros(2, device=self.device)
        for part in parts:
            own = type(batch)(*(each[part] for each in batch))
            loss, hits = self._passed(seen[part], own)
            loss = loss * (len(own.labels) / len(batch.labels))
            loss.backward()
            sums += torch.stack([loss.detach(), hits.to(loss.dtype)])
        return sums[0], sums[1]

    def _passed(self, seen: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of a pass, with its graph, and how many were right."""
        with session.autocast(self.ctx.numerics):
            logits = self.network(seen)
        loss = self.loss(logits.float(), batch)
        return loss, (logits.detach().argmax(1) == batch.labels).sum()

    def _untouched(self) -> Artefact:
        if self.init is None:
            what = "the subset is empty and there are no weights to start from"
            raise Diverged(f"{self.recipe.name}: {what}")
        return Artefact(self.init.arrays, {"epochs": 0, "samples": 0, "skipped": True})

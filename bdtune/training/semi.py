"""The loop of a semi-supervised training, and the equations of MixMatch.

Shape letters: B labelled images of a batch, U unlabelled ones, V views of each of these, K classes.
Source: "MixMatch: A Holistic Approach to Semi-Supervised Learning" (Berthelot et al., NeurIPS 2019).
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy, one_hot

from bdtune.engine.key import derive_seed
from bdtune.errors import Diverged
from bdtune.training import loop, session, weights
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.joined import joined
from bdtune.training.losses import cross_entropies
from bdtune.training.parts import held
from bdtune.training.predict import predict_logits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.model import Model
    from bdtune.plugins.network import Network
    from bdtune.training.batches import Batch
    from bdtune.training.mixmatch import SemiSupervised

DESCENT = "descent."
"""Prefix of the weights that Adam changes, where the result is their average."""


def sharpen(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return p^(1/T) / sum of p^(1/T) of distributions [..., K] (equation 7)."""
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(-1, keepdim=True)


def guessed(logits: torch.Tensor, views: int, temperature: float) -> torch.Tensor:
    """Return sharpened labels [U, K]: the mean prediction over an image's views, of logits [V * U, K]."""
    predictions = logits.softmax(1).view(views, -1, logits.shape[1])
    return sharpen(predictions.mean(0), temperature)


def mixed(values: torch.Tensor, order: torch.Tensor, share: float) -> torch.Tensor:
    """Return the share of each row of values [n, ...], and the rest of the row that `order` names."""
    return torch.lerp(values[order], values, share)


def loss_parts(
    logits: torch.Tensor, targets: torch.Tensor, labelled: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross-entropy of the first `labelled` rows [n, K], and the squared error of the rest.

    Both are means over rows; the error is also one over classes (equations 3 and 4). Without a rest it is 0.
    """
    loss_x = cross_entropy(logits[:labelled], targets[:labelled])
    rest = logits[labelled:].softmax(1) - targets[labelled:]
    return loss_x, rest.square().mean() if len(rest) else loss_x.new_zeros(())


def endless(images: DeviceSet, batch_size: int, seed: int) -> Iterator[Batch]:
    """Yield full batches of a pool for ever, in a new order each time that it is used up."""
    size = min(batch_size, len(images))
    for turn in itertools.count():
        yield from images.shuffled(size, seed, turn, drop_last=True)


class SemiFit:
    """A network with its optimizer, images and pool of labelled samples, as a recipe asks for."""

    def __init__(  # noqa: PLR0917  the inputs of the training
        self,
        recipe: SemiSupervised,
        ctx: Context,
        data: ImageSet,
        model: Model,
        init: Artefact | None,
        clean: ImageSet | None,
    ) -> None:
        self.recipe, self.ctx, self.data = recipe, ctx, data
        self.labels = np.asarray(data.labels, np.int64)
        self.device = session.device_of(ctx.numerics)
        self.network = weights.new_network(model, data, ctx.seed, ctx.numerics, init)
        self.judged = copy.deepcopy(self.network) if recipe.ema else self.network
        self.optimizer = loop.make_optimizer(
            self.network.parameters(), "adam", recipe.lr, weight_decay=recipe.weight_decay
        )
        self.before = 0 if init is None else int(init.info["epochs"])
        if init is not None:
            self._go_on(init)
        self._all, self._clean = joined(data, clean), 0 if clean is None else len(clean)
        self.see = Augmentation.of(recipe.augment, data, session.dtype_of(ctx.numerics))
        self._labelled = torch.zeros(recipe.epochs, len(data), dtype=torch.bool)
        self._scores = torch.zeros(2, len(data))

    def _go_on(self, init: Artefact) -> None:
        if any(name.startswith(DESCENT) for name in init.arrays):
            weights.load_module(self.network, init.arrays, DESCENT)
        if any(name.startswith("optimizer.") for name in init.arrays):
            weights.load_optimizer(self.optimizer, init.arrays, "optimizer.model.")

    def training(self) -> loop.Training:
        """Return the training."""
        pool = held(labelled=self._labelled, scores=self._scores)
        modules = {"model": self.network, "pool": pool}
        modules |= {"average": self.judged} if self.recipe.ema else {}
        optimizers = {"model": self.optimizer}
        return loop.Training(
            self.recipe.name, self.recipe.epochs, modules, optimizers, self._epoch, self._result
        )

    def _result(self, done: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = weights.module_arrays(self.judged)
        arrays["pool.labelled"] = weights.as_array(self._labelled[:done])
        arrays["pool.scores"] = weights.as_array(self._scores)
        if self.recipe.goes_on:
            arrays |= weights.optimizers_arrays({"model": self.optimizer})
            arrays |= weights.module_arrays(self.network, DESCENT) if self.recipe.ema else {}
        return arrays, {"epochs": self.before + done}

    def losses(self, network: Network, done: int) -> np.ndarray:
        """Return the cross-entropies float64 [N] of the observed labels, on the views that `recipe` scores.

        Augmented views depend on seed and epoch alone: two networks see the same.
        """
        see = None
        if self.recipe.score_views == "augmented":
            plain, draws = Augmentation.of(self.recipe.augment, self.data), self._draws("scores", done)
            see = lambda images: plain(images, draws)  # noqa: E731
        logits = predict_logits(network, self.data, self.ctx.numerics, see)
        return cross_entropies(logits, self.labels)

    def _draws(self, name: str, done: int) -> torch.Generator:
        return session.generator(self.ctx.seed, name, done)

    def _part(self, done: int) -> np.ndarray:
        """Return whose labels are read, bool [N], and note them."""
        labelled, scores = self.recipe.split(self, self.losses(self.judged, done), done)
        self._scores[1 if done else slice(None)] = torch.from_numpy(scores).float()
        self._labelled[done] = torch.from_numpy(labelled)
        return labelled

    def _pools(self, labelled: np.ndarray, done: int) -> Iterator[tuple[Batch, Batch | None]]:
        """Yield the batches of an epoch's steps; no unlabelled one where every sample is labelled."""
        clean = len(self.data) + np.arange(self._clean)
        known = DeviceSet(self._all, self.device, np.concatenate([np.flatnonzero(labelled), clean]))
        unknown = DeviceSet(self.data, self.device, np.flatnonzero(~labelled))
        if not len(known):
            raise Diverged(f"{self.recipe.name}: no sample is labelled in epoch {done + 1}")
        size, seed = self.recipe.batch_size, self.ctx.seed
        first = endless(known, size, derive_seed(seed, "labelled", done))
        second: Iterator[Batch | None] = itertools.repeat(None)
        if len(unknown):
            second = endless(unknown, size, derive_seed(seed, "unlabelled", done))
        yield from itertools.islice(zip(first, second, strict=False), self.recipe.iterations)

    def _epoch(self, done: int) -> dict[str, float]:
        recipe = self.recipe
        labelled = self._part(done)
        self.network.train()
        meter = loop.Meter(f"{recipe.name}: epoch {done + 1} of {recipe.epochs}", self.device)
        parts, draws = torch.zeros(2, device=self.device), self._draws("augment", done)
        shares = self._shares(done)
        for step, (known, unknown) in enumerate(self._pools(labelled, done)):
            weight = self._weight(done + step / recipe.iterations)
            loss_x, loss_u = self._step(known, unknown, shares[step], draws)
            loss = loss_x + weight * loss_u
            loop.descend(self.optimizer, loss)
            if recipe.ema:
                self._average()
            meter.add(loss, 1)
            parts += torch.stack([loss_x, loss_u]).detach()
        loss_x, loss_u = (parts / recipe.iterations).tolist()
        row = {"loss": meter.means()[0], "loss_x": loss_x, "loss_u": loss_u}
        return {**row, "lambda_u": self._weight(done + 1.0), "labelled": float(labelled.sum() + self._clean)}

    def _shares(self, done: int) -> np.ndarray:
        """Return max(l, 1 - l) [iterations] with l from Beta(alpha, alpha) (equations 8 and 9)."""
        recipe = self.recipe
        if not recipe.mixup_alpha:
            return np.ones(recipe.iterations)
        draws = np.random.default_rng(derive_seed(self.ctx.seed, "mixup", done))
        found = draws.beta(recipe.mixup_alpha, recipe.mixup_alpha, recipe.iterations)
        return np.maximum(found, 1 - found)

    def _weight(self, epochs: float) -> float:
        """Return the weight of the unlabelled part after so many epochs of this training."""
        if not self.recipe.ramp:
            return self.recipe.lambda_u
        return self.recipe.lambda_u * min((self.before + epochs) / self.recipe.ramp, 1.0)

    def _step(
        self, known: Batch, unknown: Batch | None, share: float, draws: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both parts of the loss of one step."""
        recipe = self.recipe
        inputs = self.see(known.images, draws)
        targets = one_hot(known.labels, self.data.num_classes).float()
        if unknown is not None:
            views = self.see(unknown.images.repeat(recipe.views, 1, 1, 1), draws)
            with torch.no_grad():
                guess = guessed(self._logits(views), recipe.views, recipe.temperature)
            inputs = torch.cat([inputs, views])
            targets = torch.cat([targets, guess.repeat(recipe.views, 1)])
        order = torch.randperm(len(inputs), generator=draws).to(self.device)
        logits = self._logits(mixed(inputs, order, share))
        return loss_parts(logits, mixed(targets, order, share), len(known.rows))

    def _logits(self, inputs: torch.Tensor) -> torch.Tensor:
        with session.autocast(self.ctx.numerics):
            logits = self.network(inputs)
        found: torch.Tensor = logits.float()
        return found

    def _average(self) -> None:
        """Move the averaged weights and buffers towards the trained ones; counters are copied."""
        with torch.no_grad():
            own, new = self.judged.state_dict(), self.network.state_dict()
            for name, value in own.items():
                if value.is_floating_point():
                    value.lerp_(new[name], 1 - self.recipe.ema)
                else:
                    value.copy_(new[name])

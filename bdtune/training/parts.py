"""Parts of trainings: what they keep of samples' losses, how samples are weighed, which epoch is best."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from bdtune.metrics import accuracy
from bdtune.training.fit import Part
from bdtune.training.micro_batches import mean_over_samples
from bdtune.training.pgd import robust_predictions
from bdtune.training.weights import as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from bdtune.training.adversarial import PGD
    from bdtune.training.batches import Batch
    from bdtune.training.fit import Fit


def held(**buffers: torch.Tensor) -> torch.nn.Module:
    """Return a module of buffers, so that checkpoints keep what changes in them."""
    module = torch.nn.Module()
    for name, value in buffers.items():
        module.register_buffer(name, value)
    return module


def last_features(fit: Fit) -> Callable[[], torch.Tensor]:
    """Return what gives the features float32 [B, d] of the network's last forward pass, with gradients."""
    found: dict[str, torch.Tensor] = {}
    fit.network.head.register_forward_pre_hook(lambda _head, given: found.update(features=given[0]))

    def features() -> torch.Tensor:
        return found["features"].float()

    return features


class LossTrace(Part):
    """Keep each sample's loss by epoch: arrays `trace.losses` float32 [epochs, n], by row of the subset.

    They are the losses of the training's own forward passes: batch norm in training mode, weights as they
    were at that step. So they cost nothing, and differ a little from losses taken after the epoch.
    """

    def __init__(self, fit: Fit) -> None:
        self._losses = torch.zeros(fit.recipe.epochs, fit.samples, device=fit.device)
        self.modules = {"trace": held(losses=self._losses)}

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the cross-entropies [B] of one batch, which are kept."""
        found = cross_entropy(logits, batch.labels, reduction="none")
        self._current[batch.rows] = found.detach()
        return found

    @mean_over_samples
    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy of one batch, whose single ones are kept."""
        self.losses(logits.detach(), batch)
        return cross_entropy(logits, batch.labels)

    def before_epoch(self, done: int) -> None:
        self._current = self._losses[done]

    def kept(self, arrays: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
        return {**arrays, "trace.losses": arrays["trace.losses"][:done]}


class SampleWeights(Part):
    """Weigh each sample's cross-entropy; negative weights make the training ascend on the sample.

    The curve gets `ascent_loss`, the mean cross-entropy of samples of negative weight, where there are any.
    """

    def __init__(self, fit: Fit, weights: np.ndarray, cap: float | None) -> None:
        """Take weights float32 [N] by sample id; from the loss `cap` on no sample is pushed up any more."""
        self._weights = as_tensor(weights[fit.ids]).to(fit.device)
        self._ascent = torch.zeros(2, dtype=torch.float64, device=fit.device)
        self._cap = cap

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean of w_i times the cross-entropy of sample i."""
        losses = cross_entropy(logits, batch.labels, reduction="none")
        weights = self._weights[batch.rows]
        pushed = weights < 0
        self._ascent[0] += (losses.detach() * pushed).sum()
        self._ascent[1] += pushed.sum()
        if self._cap is not None:
            losses = losses.where(~pushed, losses.clamp(max=self._cap))
        return (weights * losses).mean()

    def before_epoch(self, done: int) -> None:
        self._ascent.zero_()

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        total, count = self._ascent.tolist()
        return {"ascent_loss": total / count} if count else {}


def clip_gradients(fit: Fit, limit: float | None) -> None:
    """Bound the norm of each step's gradient over all weights; None: no bound."""
    if limit is None:
        return

    def clip(*_step: object) -> None:
        torch.nn.utils.clip_grad_norm_(fit.network.parameters(), limit)

    fit.optimizer.register_step_pre_hook(clip)


class BestRobustEpoch(Part):
    """Keep the weights of the epoch that is most robust on the validation part, under an attack.

    Arrays: weights `best.<name>`; `validation.robust_acc` float64 [epochs], the accuracy under the attack
    after each epoch, in float32 whatever the numerics. The first of equal epochs is the best.
    """

    def __init__(self, fit: Fit, attack: PGD) -> None:
        """The fit's subset has arrays validation_ids and validation_labels."""
        ids, labels = fit.subset.arrays["validation_ids"], fit.subset.arrays["validation_labels"]
        self._held = replace(fit.data, images=fit.data.images_at(ids), labels=labels)
        self._fit, self._attack, self._done = fit, attack, 0
        self._best = copy.deepcopy(fit.network)
        self._curve = torch.zeros(fit.recipe.epochs, dtype=torch.float64, device=fit.device)
        self.modules = {"best": self._best, "validation": held(robust_acc=self._curve)}

    def before_epoch(self, done: int) -> None:
        self._done = done

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        network, ctx, curve = self._fit.network, self._fit.ctx, self._curve
        predicted = robust_predictions(network, self._held, self._attack, ctx.seed, ctx.numerics)
        found = accuracy(predicted, self._held.labels)
        if not self._done or found > curve[: self._done].max():
            self._best.load_state_dict(network.state_dict())
        curve[self._done] = found
        return {"validation_robust_acc": found}

    def kept(self, arrays: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
        return {**arrays, "validation.robust_acc": arrays["validation.robust_acc"][:done]}


class BatchNormMode(Part):
    """Train with batch norm in another mode: frozen_stats keeps its running values, eval also uses them."""

    def __init__(self, fit: Fit, mode: Literal["train", "frozen_stats", "eval"]) -> None:
        norms = [part for part in fit.network.modules() if isinstance(part, _BatchNorm)]
        self._frozen = norms if mode == "frozen_stats" else []
        self._in_eval = norms if mode == "eval" else []

    def before_epoch(self, done: int) -> None:
        for norm in self._frozen:
            norm.momentum = 0.0
        for norm in self._in_eval:
            norm.eval()

"""What fine-tuning does besides descending: sharpness, a new head, a rate by batch, what it records."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from bdtune.metrics import accuracy
from bdtune.training import session
from bdtune.training.batches import batches_of
from bdtune.training.fit import Part
from bdtune.training.loop import set_learning_rate
from bdtune.training.losses import cross_entropies
from bdtune.training.micro_batches import is_mean, mean_over_samples
from bdtune.training.predict import predict_logits
from bdtune.training.weights import HEAD, PREFIX, as_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bdtune.engine.stage import Artefact
    from bdtune.plugins.data import ImageSet
    from bdtune.plugins.network import Network
    from bdtune.training.batches import Batch
    from bdtune.training.fine_tune import Mode
    from bdtune.training.fit import Fit

TINY = 1e-12
"""Keeps the perturbation of a vanishing gradient finite."""


def freeze(network: Network, mode: Mode) -> None:
    """Take the weights that a mode does not train out of the descent; running statistics still move."""
    network.requires_grad_(mode != "lp")
    network.head.requires_grad_(mode != "fe_tuning")


def new_head(network: Network, seed: int) -> None:
    """Draw the head's weights and bias from U(-1 / sqrt(d), 1 / sqrt(d)), on the CPU for every device."""
    head = network.head
    with session.seeded(seed, "head"):
        fresh = torch.nn.Linear(head.in_features, head.out_features)  # which is torch's own law
    head.load_state_dict(fresh.state_dict())


def smooth_labels(fit: Fit, smoothing: float) -> None:
    """Make the loss spread a share of each label over the other classes: s / (K - 1) each."""
    if smoothing == 0:
        return
    classes = fit.data.num_classes
    everywhere = smoothing * classes / (classes - 1)  # torch spreads over all K classes
    fit.loss = mean_over_samples(
        lambda logits, batch: cross_entropy(logits, batch.labels, label_smoothing=everywhere)
    )


def shift_head(fit: Fit, alpha: float, *, project: bool) -> None:
    """Add alpha <W, W_0> to the loss, W_0 being the old head's weights; keep their norm if `project`."""
    assert fit.init is not None
    head, plain = fit.network.head, fit.loss
    old = as_tensor(fit.init.arrays[f"{HEAD}weight"]).to(head.weight.device)
    norm = old.norm()
    fit.loss = lambda logits, batch: plain(logits, batch) + alpha * (head.weight * old).sum()
    if is_mean(plain):
        mean_over_samples(fit.loss)

    def rescale(*_step: object) -> None:
        with torch.no_grad():
            head.weight.mul_(norm / head.weight.norm().clamp_min(TINY))

    if project:
        fit.optimizer.register_step_post_hook(rescale)


class BatchRate(Part):
    """Set the learning rate before each step; the curve's lr is that of an epoch's last one."""

    def __init__(self, fit: Fit, rate: Callable[[int, int], float]) -> None:
        """`rate` maps the step, counted from 0 over all epochs, and the epochs done to the rate."""
        self._rate, self._lr, self._done, self._step = rate, 0.0, 0, 0
        self._steps = len(batches_of(fit.samples, fit.recipe.batch_size))
        fit.optimizer.register_step_pre_hook(self._set)

    def before_epoch(self, done: int) -> None:
        self._done, self._step = done, done * self._steps

    def _set(self, optimizer: torch.optim.Optimizer, *_step: object) -> None:
        self._lr = self._rate(self._step, self._done)
        set_learning_rate(optimizer, self._lr)
        self._step += 1

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        return {"lr": self._lr}


def perturbation(
    weights: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor], rho: float, *, adaptive: bool
) -> list[torch.Tensor]:
    """Return the step up the gradient g, of length rho over all weights w (SAM).

    rho g / ||g||; adaptive: rho w^2 g / || |w| g ||.
    """
    scaled = [w.abs() * g if adaptive else g for w, g in zip(weights, gradients, strict=True)]
    scale = rho / (torch.stack([each.norm() for each in scaled]).norm() + TINY)
    if not adaptive:
        return [g * scale for g in gradients]
    return [w.abs() * each * scale for w, each in zip(weights, scaled, strict=True)]


class Sharpness(Part):
    """Descend along the gradient of the same batch at perturbed weights: sharpness-aware minimisation."""

    def __init__(self, fit: Fit, rho: float, *, adaptive: bool) -> None:
        self._fit, self._rho, self._adaptive = fit, rho, adaptive
        self._prepare, self._loss = fit.prepare, fit.loss
        fit.prepare = self._prepared
        fit.optimizer.register_step_pre_hook(self._perturbed)

    def _prepared(self, batch: Batch, draws: torch.Generator) -> torch.Tensor:
        self._batch, self._seen = batch, self._prepare(batch, draws)
        return self._seen

    def _perturbed(self, optimizer: torch.optim.Optimizer, *_step: object) -> None:
        """Replace the gradients by those at the perturbed weights."""
        network = self._fit.network
        moved = [weight for weight in network.parameters() if weight.grad is not None]
        before = [weight.detach().clone() for weight in moved]
        gradients = [weight.grad for weight in moved if weight.grad is not None]
        step = perturbation(before, gradients, self._rho, adaptive=self._adaptive)
        with torch.no_grad():
            for weight, change in zip(moved, step, strict=True):
                weight.add_(change)
        optimizer.zero_grad()
        with unmoved_statistics(network):
            with session.autocast(self._fit.ctx.numerics):
                logits = network(self._seen)
            self._loss(logits.float(), self._batch).backward()
        with torch.no_grad():
            for weight, value in zip(moved, before, strict=True):
                weight.copy_(value)


@contextmanager
def unmoved_statistics(network: torch.nn.Module) -> Iterator[None]:
    """Let batch norm in training mode normalise by its batch, and leave the running values as they are."""
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.training]
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, before in zip(norms, tracking, strict=True):
            norm.track_running_stats = before


class Progress(Part):
    """Record after each epoch how far the weights are from the start, and accuracy on the validation part."""

    def __init__(self, fit: Fit, init: Artefact, validation: Artefact | None) -> None:
        self._fit = fit
        self._start = {
            name.removeprefix(PREFIX): as_tensor(array).to(fit.device) for name, array in init.arrays.items()
        }
        self._held = None if validation is None else part_of(fit.data, validation)

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        return {**self._moved(), **self._validated()}

    def _moved(self) -> dict[str, float]:
        network = self._fit.network
        pairs = [(weight.detach(), self._start[name]) for name, weight in network.named_parameters()]
        far = torch.stack([(weight - start).norm() for weight, start in pairs]).norm()
        whole = torch.stack([start.norm() for _, start in pairs]).norm()
        head = network.head.weight.detach().flatten(), self._start["head.weight"].flatten()
        cosine = torch.nn.functional.cosine_similarity(*head, dim=0)
        return {"distance": float(far / whole.clamp_min(TINY)), "head_cosine": float(cosine)}

    def _validated(self) -> dict[str, float]:
        if self._held is None or not len(self._held):
            return {}
        logits = predict_logits(self._fit.network, self._held, self._fit.ctx.numerics)
        loss = float(cross_entropies(logits, self._held.labels).mean())
        return {"validation_loss": loss, "validation_acc": accuracy(logits.argmax(1), self._held.labels)}


def part_of(data: ImageSet, subset: Artefact) -> ImageSet:
    """Return the images of a subset, whose ids rise, with its labels."""
    return replace(data, images=data.images_at(subset.arrays["ids"]), labels=subset.arrays["labels"])

"""What CBD's clean model minimises, and the discriminator that it plays against.

Shape letters: B batch, d width of the clean model's features, e of the backdoored model's.
Source: "Backdoor Defense via Deconfounded Representation Learning" (Zhang et al., CVPR 2023) and its code.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm

from bdtune.engine.stage import Artefact
from bdtune.training import loop, session
from bdtune.training.fit import Part
from bdtune.training.parts import held, last_features

if TYPE_CHECKING:
    import numpy as np

    from bdtune.defenses.cbd.training import Clean, Discriminator
    from bdtune.plugins.network import Network
    from bdtune.training.batches import Batch
    from bdtune.training.fit import Fit

TINY = 1e-8  # keeps 0 / 0 out of the weights
POWER = 5  # power iterations a step: after one, at Adam's rate of 0.2, the norm lags behind by 40 %


def ratio(known: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Return w [B] = CE_B / (CE_B + CE): near 0 for what the backdoored model fits, as it does poison."""
    return known / (known + own + TINY)


def to_mean_one(weights: torch.Tensor) -> torch.Tensor:
    """Return weights [B] scaled to mean 1; zeros stay zeros."""
    return weights * (len(weights) / weights.sum().clamp_min(TINY))


def new_discriminator(width: int, hidden: int, knobs: Discriminator) -> nn.Sequential:
    """Return linear, leaky ReLU, linear, each layer behind dropout: [B, width] to [B, 1]."""
    layers: list[nn.Module] = [nn.Linear(width, hidden), nn.Linear(hidden, 1)]
    if knobs.lipschitz == "spectral":
        layers = [spectral_norm(layer, n_power_iterations=POWER) for layer in layers]
    drop = nn.Dropout(knobs.dropout)
    return nn.Sequential(drop, layers[0], nn.LeakyReLU(), drop, layers[1])


def dependence(discriminator: nn.Module, r_Be: torch.Tensor, z_Bd: torch.Tensor) -> torch.Tensor:
    """Return mean T(r_i, z_i) - mean T(r_i, z_i+1), the last image's partner being the first.

    The batch is shuffled, so that neighbours are two images that were drawn independently.
    """
    pairs = torch.cat([torch.cat([r_Be, z], 1) for z in (z_Bd, z_Bd.roll(-1, 0))])
    joint, apart = discriminator(pairs).chunk(2)
    return joint.mean() - apart.mean()


class Deconfounding(Part):
    """Weigh samples, train the discriminator a step, and keep weights and dependence by epoch."""

    def __init__(self, fit: Fit, recipe: Clean, known: Network) -> None:
        """Take the backdoored model in evaluation mode; replaces the fit's `prepare` and `loss`."""
        self._fit, self._recipe, self._known = fit, recipe, known
        self._features, self._prepare = last_features(fit), fit.prepare
        fit.prepare, fit.loss = self.prepare, self.loss
        self._weights = torch.zeros(recipe.epochs, fit.samples, device=fit.device)
        self._dependence = torch.zeros(recipe.epochs, dtype=torch.float64, device=fit.device)
        self.modules = {"trace": held(weights=self._weights, dependence=self._dependence)}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        if recipe.terms != "weights":
            self._make_discriminator()

    def _make_discriminator(self) -> None:
        own, knobs = self._fit.network.feature_dim, self._recipe.discriminator
        with session.seeded(self._fit.ctx.seed, "discriminator"):
            made = new_discriminator(self._known.feature_dim + own, own, knobs).to(self._fit.device)
        self._discriminator = made
        self.modules = {**self.modules, "discriminator": made}
        self.optimizers = {"discriminator": loop.make_optimizer(made.parameters(), "adam", knobs.lr)}

    def before_epoch(self, done: int) -> None:
        recipe, self._done, self._seen = self._recipe, done, 0
        knobs = recipe.discriminator
        for optimizer in self.optimizers.values():
            lr = loop.learning_rate(
                "multistep", knobs.lr, done, recipe.epochs, milestones=knobs.milestones, gamma=0.1
            )
            loop.set_learning_rate(optimizer, lr)

    def prepare(self, batch: Batch, draws: torch.Generator) -> torch.Tensor:
        """Return the network's input, of which the backdoored model has its say."""
        seen = self._prepare(batch, draws)
        with torch.no_grad(), session.autocast(self._fit.ctx.numerics):
            r_Be = self._known.features(seen)
            logits = self._known.head(r_Be)
        self._r_Be = r_Be.float()
        self._losses = cross_entropy(logits.float(), batch.labels, reduction="none")
        return seen

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return what is minimised, of logits [B, K]."""
        recipe, z_Bd = self._recipe, self._features()
        own = cross_entropy(logits, batch.labels, reduction="none")
        weights = ratio(self._losses, own.detach())
        self._weights[self._done, batch.rows] = weights
        if recipe.normalise:
            weights = to_mean_one(weights)
        loss = own.mean() if recipe.terms == "dependence" else (weights * own).mean()
        if recipe.bottleneck:
            loss = loss + recipe.bottleneck * z_Bd.square().sum(1).mean() / 2
        if self.optimizers:
            loss = loss + recipe.coefficient * self._against(z_Bd)
        return loss

    def _against(self, z_Bd: torch.Tensor) -> torch.Tensor:
        """Return D, after a step of the discriminator up its gradient."""
        before = dependence(self._discriminator, self._r_Be, z_Bd.detach())
        loop.descend(self.optimizers["discriminator"], -before)
        found = dependence(self._discriminator, self._r_Be, z_Bd)
        self._dependence[self._done] += found.detach() * len(z_Bd)
        self._seen += len(z_Bd)
        return found

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        if not self.optimizers:
            return {}
        self._dependence[self._done] /= self._seen
        return {"dependence": self._dependence[self._done].item()}

    def kept(self, arrays: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
        found = {name: value for name, value in arrays.items() if not name.startswith("discriminator.")}
        for name in ("trace.weights", "trace.dependence"):
            found[name] = arrays[name][:done]
        return found


def deconfounded(fit: Fit, recipe: Clean, known: Network) -> loop.Training | Artefact:
    """Return the training of the clean model beside a backdoored one, with both optimizers."""
    part = Deconfounding(fit, recipe, known)
    training = fit.training(part)
    if isinstance(training, Artefact):
        return training
    return replace(training, optimizers={**training.optimizers, **part.optimizers})

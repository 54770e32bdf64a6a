"""A classifier of features in place of GSSD's flows: its log-probabilities stand for log-densities.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, 2024),
appendix J: linear, ReLU, linear, cross-entropy. Hidden width and training are not given there; the defaults
(512 units, Adam at 1e-3, 50 epochs, batches of 128) are ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from bdtune.engine.stage import Artefact, Context, Inputs, Kind, Stage, Tick
from bdtune.errors import Diverged

if TYPE_CHECKING:
    from collections.abc import Generator

    import torch


class Discriminative(Stage):
    """Train a classifier on features and observed labels; evaluate it on the same samples.

    Inputs: features (z float32 [N, D]), data (LabelSet). Arrays: L float32 [N, K], log-softmax; labels int64
    [N], as `Density` gives them. Raises `Diverged` when the loss is not finite.
    """

    name: ClassVar[str] = "discriminative"
    kind: ClassVar[Kind] = "train"

    epochs: int = Field(50, ge=1)
    """Passes over the features."""
    batch_size: int = Field(128, ge=1)
    """Samples per step; the last batch may be smaller."""
    lr: float = Field(1e-3, gt=0)
    """Adam's constant learning rate."""
    hidden: int = Field(512, ge=1)
    """Hidden units."""

    def length(self) -> int:
        return self.epochs

    def steps(self, inputs: Inputs, ctx: Context) -> Generator[Tick, None, Artefact]:
        from torch import nn
        from torch.nn.functional import cross_entropy

        from bdtune.training import session, weights

        device = session.device_of(ctx.numerics)
        z_ND = weights.as_tensor(inputs["features"].arrays["z"]).to(device)
        observed = np.array(inputs["data"].labels, np.int64)
        labels = weights.as_tensor(observed).to(device)
        with session.seeded(ctx.seed, "weights"):
            classes = inputs["data"].num_classes
            network = nn.Sequential(
                nn.Linear(z_ND.shape[1], self.hidden), nn.ReLU(), nn.Linear(self.hidden, classes)
            ).to(device)
        optimizer = _adam(network, self.lr)
        curve: list[dict[str, float]] = []
        for epoch in range(self.epochs):
            total = z_ND.new_zeros(())
            for rows in _shuffled(len(z_ND), self.batch_size, session.generator(ctx.seed, "order", epoch)):
                loss = cross_entropy(network(z_ND[rows.to(device)]), labels[rows.to(device)])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach() * len(rows)
            mean = float(total) / len(z_ND)
            if not math.isfinite(mean):
                raise Diverged(f"{self.name}: non-finite loss in epoch {epoch + 1}; lower lr")
            curve.append({"epoch": epoch + 1, "loss": mean})
            yield Tick(
                epoch + 1, self.epochs, {"loss": mean}, lambda: _result(network, z_ND, observed, curve)
            )
        return _result(network, z_ND, observed, curve)


def _adam(network: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    import torch

    return torch.optim.Adam(network.parameters(), lr=lr, fused=True)


def _shuffled(count: int, batch_size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    import torch

    return torch.randperm(count, generator=generator).split(batch_size)


def _result(
    network: torch.nn.Module, z_ND: torch.Tensor, observed: np.ndarray, curve: list[dict[str, float]]
) -> Artefact:
    L = network(z_ND).log_softmax(1).detach().cpu().numpy()
    return Artefact({"L": L, "labels": observed}, {}, tuple(curve))

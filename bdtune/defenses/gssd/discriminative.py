"""A classifier of features in place of GSSD's flows: its log-probabilities stand for log-densities.

Source: "Backdoor Defense through Self-Supervised and Generative Learning" (Sabolić, Grubišić, Šegvić, 2024),
appendix J: linear, ReLU, linear, cross-entropy. Hidden width and training are not given there; the defaults
(512 units, Adam at 1e-3, 50 epochs, batches of 128) are ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from bdtune.training.torch_stage import TorchStage

if TYPE_CHECKING:
    from bdtune.engine.stage import Artefact, Context
    from bdtune.plugins.data import LabelSet
    from bdtune.training.loop import Training


class Discriminative(TorchStage):
    """Train a classifier on features and observed labels; evaluate it on the same samples.

    Inputs: features (z float32 [N, D]), data (LabelSet). Arrays: L float32 [N, K], log-softmax; labels int64
    [N], as `Density` gives them. Raises `Diverged` when the loss is not finite.
    """

    name: ClassVar[str] = "discriminative"

    epochs: int = Field(50, ge=1)
    """Passes over the features."""
    batch_size: int = Field(128, ge=1)
    """Samples per step; the last batch may be smaller."""
    lr: float = Field(1e-3, gt=0)
    """Adam's constant learning rate."""
    hidden: int = Field(512, ge=1)
    """Hidden units."""

    def training(self, ctx: Context, *, features: Artefact, data: LabelSet) -> Training:
        import torch
        from torch import nn
        from torch.nn.functional import cross_entropy

        from bdtune.training import loop, session, weights

        device = session.device_of(ctx.numerics)
        z_ND = weights.as_tensor(features.arrays["z"]).to(device)
        observed = np.array(data.labels, np.int64)
        labels = weights.as_tensor(observed).to(device)
        with session.seeded(ctx.seed, "weights"):
            hidden, out = nn.Linear(z_ND.shape[1], self.hidden), nn.Linear(self.hidden, data.num_classes)
        network = nn.Sequential(hidden, nn.ReLU(), out).to(device)
        optimizer = loop.make_optimizer(network.parameters(), "adam", self.lr)

        def epoch(done: int) -> dict[str, float]:
            meter = loop.Meter(f"{self.name}: epoch {done + 1} of {self.epochs}", device)
            order = torch.randperm(len(z_ND), generator=session.generator(ctx.seed, "order", done))
            for rows in order.to(device).split(self.batch_size):
                loss = cross_entropy(network(z_ND[rows]), labels[rows])
                loop.descend(optimizer, loss)
                meter.add(loss, len(rows))
            return {"loss": meter.means()[0]}

        def result(_done: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            with torch.inference_mode():
                L = weights.as_array(network(z_ND).log_softmax(1))
            return {"L": L, "labels": observed}, {}

        modules, optimizers = {"network": network}, {"network": optimizer}
        return loop.Training(self.name, self.epochs, modules, optimizers, epoch, result)

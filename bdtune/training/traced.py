"""Trainings that keep what they saw of each sample's loss, epoch by epoch."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    import numpy as np
    import torch

    from bdtune.engine.stage import Inputs
    from bdtune.plugins.network import Network
    from bdtune.training.batches import Batch


class Recorded(Supervised):
    """Base of trainings whose result also holds `trace.losses` float32 [epochs, n], by row of the subset.

    They are the losses of the training's own forward passes: batch norm in training mode, weights as they
    were at that step. So they cost nothing, and differ a little from losses taken after the epoch.
    """

    def batch_loss(self, logits: torch.Tensor, batch: Batch, inputs: Inputs) -> torch.Tensor:
        self.recorded(logits.detach(), batch, inputs)
        return super().batch_loss(logits, batch, inputs)

    def recorded(self, logits: torch.Tensor, batch: Batch, inputs: Inputs) -> torch.Tensor:
        """Return the cross-entropies [B] of one batch, which are kept for the result."""
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(logits, batch.labels, reduction="none")
        inputs["trace"].current[batch.rows] = losses.detach()
        return losses

    def companions(self, inputs: Inputs, device: torch.device) -> dict[str, torch.nn.Module]:
        import torch

        trace = torch.nn.Module()
        samples = len(inputs["subset"].arrays["ids"])
        trace.register_buffer("losses", torch.zeros(self.epochs, samples, device=device))
        return {**super().companions(inputs, device), "trace": trace}

    def kept(self, arrays: dict[str, np.ndarray], done: int) -> dict[str, np.ndarray]:
        return {**super().kept(arrays, done), "trace.losses": arrays["trace.losses"][:done]}

    def before_epoch(self, done: int, network: Network, inputs: Inputs) -> None:
        super().before_epoch(done, network, inputs)
        inputs["trace"].current = inputs["trace"].losses[done]


class Traced(Recorded):
    """Base of recorded trainings that make what they minimise out of those losses."""

    @abstractmethod
    def objective(self, losses: torch.Tensor) -> torch.Tensor:
        """Return what is minimised, of the cross-entropies [B] of one batch."""

    def batch_loss(self, logits: torch.Tensor, batch: Batch, inputs: Inputs) -> torch.Tensor:
        return self.objective(self.recorded(logits, batch, inputs))

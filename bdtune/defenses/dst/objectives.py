"""What D-ST's trainings minimise.

Shape letters: B batch, d width of the features, K classes.
Source: "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples" (Chen et al., NeurIPS
2022) for the mixed cross-entropy, and the authors' released code for L_intra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from bdtune.training.fit import Part
from bdtune.training.parts import last_features
from bdtune.training.weights import as_tensor

if TYPE_CHECKING:
    from bdtune.engine.stage import Artefact
    from bdtune.training.batches import Batch
    from bdtune.training.fit import Fit


def intra(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return L_intra of features [B, d]: the mean over pairs of classes of the cosine of their centres.

    A class's cosine with itself counts as 0. Classes are those of the batch.
    """
    members = one_hot(labels, classes).T.to(features.dtype)
    counts = members.sum(1)
    unit = normalize(members @ features / counts.clamp_min(1)[:, None], dim=1)  # 0 for an absent class
    cosines = unit @ unit.T
    return (cosines.sum() - cosines.diagonal().sum()) / (counts > 0).sum() ** 2


def mixed(losses: torch.Tensor, poison: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the mean of losses [B] of clean samples minus `strength` times that of poison, bool [B]."""
    clean = losses.masked_fill(poison, 0.0).sum() / (~poison).sum().clamp_min(1)
    pushed = losses.masked_fill(~poison, 0.0).sum() / poison.sum().clamp_min(1)
    return clean - strength * pushed


class Intra(Part):
    """Minimise the cross-entropy in the first epochs, L_intra after them."""

    def __init__(self, fit: Fit, classify: int) -> None:
        self._features, self._classify, self._classes = last_features(fit), classify, fit.data.num_classes
        fit.loss = self.loss

    def before_epoch(self, done: int) -> None:
        self._classifies = done < self._classify

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of one batch."""
        if self._classifies:
            return cross_entropy(logits, batch.labels)
        return intra(self._features(), batch.labels, self._classes)


class FrozenFeatures(Part):
    """Train the last layer alone; everything before it stays, in evaluation mode."""

    def __init__(self, fit: Fit) -> None:
        self._network = fit.network
        fit.network.requires_grad_(requires_grad=False)
        fit.network.head.requires_grad_()

    def before_epoch(self, done: int) -> None:
        self._network.eval()


class Mixed(Part):
    """Minimise the mixed cross-entropy."""

    def __init__(self, fit: Fit, poison: Artefact, strength: float) -> None:
        self._poison = torch.isin(as_tensor(fit.ids), as_tensor(poison.arrays["ids"])).to(fit.device)
        self._strength = strength
        fit.loss = self.loss

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the loss of one batch."""
        losses = cross_entropy(logits, batch.labels, reduction="none")
        return mixed(losses, self._poison[batch.rows], self._strength)

"""SupCon's loss: each image's views, and those of its partners, are pulled together.

Source: "Supervised Contrastive Learning" (Khosla et al., 2020), equation 2 (the sum outside of the
logarithm), with the factor temperature / base temperature of the authors' released code.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def sup_con(
    projections: torch.Tensor, partners: torch.Tensor, temperature: float, base_temperature: float
) -> torch.Tensor:
    """Return the mean loss of projections [2B, p]; rows i and i + B are views of one image. In float32.

    `partners` bool [B, B]: row i has the images whose views are positives of image i, beside its own.
    """
    unit = normalize(projections.float(), dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / temperature).masked_fill(itself, -torch.inf)
    own = torch.eye(len(partners), dtype=torch.bool, device=unit.device)
    positives = (partners | own).repeat(2, 2) & ~itself
    shares = similarity.log_softmax(1).masked_fill(~positives, 0.0)
    return -(temperature / base_temperature) * (shares.sum(1) / positives.sum(1)).mean()

"""NT-Xent, the contrastive loss of SimCLR, and the head it is computed on.

Source: SimCLR (Chen et al., 2020), equation 1: the positive is in the denominator, beside 2B - 2 negatives.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize


def projection_head(width: int, projection: int) -> nn.Sequential:
    """Return linear d -> d, ReLU, linear d -> `projection`, both without bias."""
    return nn.Sequential(
        nn.Linear(width, width, bias=False), nn.ReLU(inplace=True), nn.Linear(width, projection, bias=False)
    )


def nt_xent(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean loss of projections [2B, p]; rows i and i + B are views of one image. In float32."""
    unit = normalize(projections.float(), dim=1)
    similarity = unit @ unit.T / temperature
    count = len(unit)
    itself = torch.eye(count, dtype=torch.bool, device=unit.device)
    partner = torch.arange(count, device=unit.device).roll(count // 2)
    return cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)

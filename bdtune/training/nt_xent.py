"""NT-Xent, the contrastive loss of SimCLR, and the head it is computed on.

Source: SimCLR (Chen et al., 2020), equation 1: the positive is in the denominator, beside 2B - 2 negatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

if TYPE_CHECKING:
    from bdtune.training.simclr import HeadKind


def projection_head(width: int, projection: int, kind: HeadKind = "plain") -> nn.Sequential:
    """Return linear d -> d, ReLU, linear d -> `projection`.

    plain: without biases, as GSSD has it; normed: with biases, and batch norm before the ReLU, as DBD has it.
    """
    normed = kind == "normed"
    between = [nn.BatchNorm1d(width)] if normed else []
    first, last = nn.Linear(width, width, bias=normed), nn.Linear(width, projection, bias=normed)
    return nn.Sequential(first, *between, nn.ReLU(inplace=True), last)


def nt_xent(projections: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean loss of projections [2B, p]; rows i and i + B are views of one image. In float32."""
    unit = normalize(projections.float(), dim=1)
    similarity = unit @ unit.T / temperature
    count = len(unit)
    itself = torch.eye(count, dtype=torch.bool, device=unit.device)
    partner = torch.arange(count, device=unit.device).roll(count // 2)
    return cross_entropy(similarity.masked_fill(itself, -torch.inf), partner)

"""The cost of each class's mask, epoch by epoch, and when a class stops; K classes at once.

Source: the released code of Neural Cleanse (Wang et al., 2019), where it is written for one class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from bdtune.defenses.neural_cleanse.inversion import Inversion

NOTHING_YET = torch.finfo(torch.float64).max
"""Stands for the norm of a class whose trigger has never worked; finite, as checkpoints must be."""
FALL = 1.5
"""The cost falls by this power of the factor by which it rises."""


class Costs(torch.nn.Module):
    """Per class: the cost, the smallest norm of a trigger that worked, and the counters of the schedule."""

    active: Tensor  # bool [K], whether the class is still fitted
    cost: Tensor  # float64 [K]
    best: Tensor  # float64 [K], norm of the kept trigger
    compared: Tensor  # float64 [K], the norm that the next one must be below
    epochs: Tensor  # int64 [K], done before the class stopped
    to_set: Tensor  # int64 [K] as the next three: epochs in a row in which the trigger worked without a cost
    worked: Tensor
    failed: Tensor
    stale: Tensor  # epochs without progress
    raised: Tensor  # bool [K], whether the cost has been raised, and lowered, since it was set
    lowered: Tensor

    def __init__(self, knobs: Inversion, classes: int) -> None:
        super().__init__()
        self.knobs = knobs
        first = 0.0 if knobs.start_cost == "zero" else knobs.initial_cost
        self.register_buffer("active", torch.ones(classes, dtype=torch.bool))
        self.register_buffer("cost", torch.full((classes,), first, dtype=torch.float64))
        for name in ("best", "compared"):
            self.register_buffer(name, torch.full((classes,), NOTHING_YET, dtype=torch.float64))
        for name in ("epochs", "to_set", "worked", "failed", "stale"):
            self.register_buffer(name, torch.zeros(classes, dtype=torch.int64))
        for name in ("raised", "lowered"):
            self.register_buffer(name, torch.zeros(classes, dtype=torch.bool))

    @property
    def reached(self) -> Tensor:
        """bool [K]: whether the class's trigger has ever worked."""
        return self.best < NOTHING_YET

    def candidates(self, success: Tensor, norm: Tensor) -> Tensor:
        """Return bool [K]: classes whose trigger worked in an epoch, and is smaller than the kept one."""
        return self.active & (success >= self.knobs.success_threshold) & (norm < self.best)

    def update(self, success: Tensor, norm: Tensor, kept: Tensor) -> None:
        """Judge an epoch by success and norm [K]; `kept` bool [K] are the candidates that are kept.

        A class that has stopped keeps its cost.
        """
        self.best[kept] = norm[kept]
        self.epochs += self.active
        self._stop()
        before = self.cost.clone()
        self._change(success >= self.knobs.success_threshold)
        self.cost.copy_(torch.where(self.active, self.cost, before))

    def _stop(self) -> None:
        if not self.knobs.early_stop:
            return
        same = self.best >= self.knobs.stop_threshold * self.compared
        self.stale.copy_(torch.where(self.reached & same, self.stale + 1, 0))
        self.compared.copy_(torch.minimum(self.best, self.compared))
        self.active &= ~(self.raised & self.lowered & (self.stale >= self.knobs.stop_patience))

    def _change(self, hit: Tensor) -> None:
        patience = self.knobs.patience
        self.to_set.copy_(torch.where((self.cost == 0) & hit, self.to_set + 1, 0))
        first = self.to_set >= patience
        self.cost[first] = self.knobs.initial_cost
        for state in (self.worked, self.failed, self.raised, self.lowered):
            state[first] = 0
        self.worked.copy_(torch.where(hit, self.worked + 1, 0))
        self.failed.copy_(torch.where(hit, 0, self.failed + 1))
        up, down = self.worked >= patience, self.failed >= patience
        self.cost[up] *= self.knobs.cost_multiplier
        self.cost[down] /= self.knobs.cost_multiplier**FALL
        self.worked[up] = 0
        self.failed[down] = 0
        self.raised |= up
        self.lowered |= down

"""Micro-batches: a batch that passes the network in parts, which are halved when memory runs out.

What may pass in parts: images of a pass without a way back, gradients with respect to single images, and
gradients of a loss that is a mean over samples, through layers that see one sample each. Parts give the
same up to rounding; random masks of dropout are others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from bdtune.engine.hardware import free_cached
from bdtune.engine.remarks import MICRO_BATCH, remark

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Loss = TypeVar("Loss", bound="Callable[..., torch.Tensor]")

BATCH_NORM = "batch norm in training mode sees the whole batch"
LOSS = "its loss is not known to be a mean over samples"


def mean_over_samples(loss: Loss) -> Loss:
    """Mark a loss of a batch as the mean of what it is for single samples, plus what no sample changes."""
    loss.mean_over_samples = True  # type: ignore[attr-defined]
    return loss


def is_mean(loss: Callable[..., torch.Tensor]) -> bool:
    """Return whether a loss, or the function of a method, is marked by `mean_over_samples`."""
    return getattr(loss, "mean_over_samples", False)


def coupling(network: torch.nn.Module, loss: Callable[..., torch.Tensor]) -> str:
    """Return why the samples of a batch must pass together, "" if they need not."""
    if any(isinstance(part, _BatchNorm) and part.training for part in network.modules()):
        return BATCH_NORM
    return "" if is_mean(loss) else LOSS


class MicroBatches:
    """How many rows pass at once: `most`, or all, until the device has too little memory for them."""

    def __init__(self, what: str, most: int | None = None) -> None:
        """`what` is what passes, for remarks."""
        self.most = most
        self._what = what

    def split(self, rows: int) -> list[slice]:
        """Return the parts of so many rows, all of them at most `most` long."""
        size = rows if self.most is None else self.most
        return [slice(start, min(start + size, rows)) for start in range(0, rows, size or 1)]

    def attempt(self, rows: int, compute: Callable[[list[slice]], T]) -> T:
        """Return what `compute` makes of the parts; out of memory it is called again with halved ones.

        Raises `torch.OutOfMemoryError` where single rows do not fit.
        """
        while True:
            try:
                return compute(self.split(rows))
            except torch.OutOfMemoryError:
                now = min(rows, self.most or rows)
                if now <= 1:
                    raise
            # outside of the handler, as the error holds what the failed pass had computed
            self.most = now // 2
            free_cached()
            remark(
                f"out of memory with {now} {self._what} at once; going on with {self.most}, which changes "
                "the last digits",
                **{MICRO_BATCH: self.most},
            )

    def joined(self, rows: int, one: Callable[[slice], np.ndarray]) -> np.ndarray:
        """Return what `one` makes of each part, one after another."""
        found = self.attempt(rows, lambda parts: [one(part) for part in parts])
        return found[0] if len(found) == 1 else np.concatenate(found)

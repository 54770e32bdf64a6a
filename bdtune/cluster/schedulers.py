"""Schedulers that stop trials early, judged at each epoch of the stages that train the classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule

if TYPE_CHECKING:
    from bdtune.config.sweep import Scheduler


def make_scheduler(spec: Scheduler, epochs: int) -> Any:
    """Return Tune's scheduler; `epochs` is the largest number a trial may report."""
    if spec.name == "asha":
        return AsyncHyperBandScheduler(
            time_attr="epoch",
            max_t=max(epochs, spec.grace + 1),
            grace_period=spec.grace,
            reduction_factor=spec.reduction,
        )
    if spec.name == "hyperband":
        return HyperBandScheduler(time_attr="epoch", max_t=epochs, reduction_factor=spec.reduction)
    if spec.name == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=spec.grace, min_samples_required=3)
    return FIFOScheduler()

"""Schedulers that stop trials early, judged at each epoch of the stages that train the classifier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule

if TYPE_CHECKING:
    from bdtune.config.sweep import Scheduler


def make_scheduler(spec: Scheduler, epochs: int) -> Any:
    """Return Tune's scheduler; `epochs` is the largest number a trial may report."""
    if spec.name == "asha":
        return AsyncHyperBandScheduler(
            time_attr="epoch",
            max_t=max(epochs, spec.grace),
            grace_period=spec.grace,
            reduction_factor=spec.reduction,
            stop_last_trials=False,  # a trial ends by itself, with its evaluation
        )
    if spec.name == "hyperband":
        return HyperBandScheduler(
            time_attr="epoch", max_t=epochs, reduction_factor=spec.reduction, stop_last_trials=False
        )
    if spec.name == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=spec.grace, min_samples_required=3)
    return FIFOScheduler()


def most_open(spec: Scheduler, epochs: int, slots: int) -> int:
    """Return how many trials may be open at once: HyperBand compares those it has paused."""
    if spec.name != "hyperband":
        return slots
    rounds = round(math.log(epochs, spec.reduction)) + 1
    band = sum(math.ceil(rounds / (s + 1) * spec.reduction**s) for s in range(rounds))
    return max(slots, band)
